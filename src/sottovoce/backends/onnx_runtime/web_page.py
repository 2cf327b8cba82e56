"""A page beside an ONNX folder: any static server serves it, and the browser transcribes with onnxruntime-web."""

import json
import shutil
from pathlib import Path

from sottovoce.backends.onnx_runtime.layout import BESIDE, DATA, DECODER, ENCODER
from sottovoce.backends.onnx_runtime.writer import write_onnx
from sottovoce.backends.source import Source
from sottovoce.errors import ExportError, MissingDependencyError, OutputError
from sottovoce.system.json_object import json_object_or_empty

PACKAGE = "onnxruntime-web"
TRIED_VERSION = "1.30.0"  # the tests run with it
SCRIPTS = Path(__file__).parent / "page"
LIBRARY = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")  # in `dist`; for the processor, no GPU
INDEX, ASSETS, ORIGINAL = "index.html", "page", "original"


def find_library(given: str | Path | None = None) -> Path:
    """Return the folder of the npm package onnxruntime-web: `given`, or `node_modules/onnxruntime-web` here or in a folder above.

    Nothing is downloaded. Raises `MissingDependencyError` with the command that installs it.
    """
    here = Path.cwd()
    candidates = [Path(given).expanduser()] if given is not None else [up / "node_modules" / PACKAGE for up in (here, *here.parents)]
    for folder in candidates:
        package = json_object_or_empty(folder / "package.json")
        if package.get("name") == PACKAGE and all((folder / "dist" / name).is_file() for name in LIBRARY):
            return folder
    raise MissingDependencyError(
        f"{given or here}: has no npm package {PACKAGE}, whose files the page carries; run `npm install {PACKAGE}@{TRIED_VERSION}` in this "
        f"folder once, or name its folder with --{PACKAGE}"
    )


def write_page(folder: Path, name: str, library: Path, original: Source | None = None) -> None:
    """Add the page, its scripts and `library` to the ONNX folder `folder`, whose model is shown as `name`.

    `original`: also exported, in floating point, to `folder/original`; the page then runs both. Raises `ExportError` for models too
    large for one file, which the page cannot load.
    """
    models = [{"name": name, "folder": ""}]
    if original is not None:
        (folder / ORIGINAL).mkdir()
        write_onnx(original, folder / ORIGINAL)
        models.append({"name": f"{original.name}, original", "folder": f"{ORIGINAL}/"})
    for model in models:
        for file in (ENCODER, DECODER):
            if (folder / model["folder"] / f"{file}{DATA}").exists():
                raise ExportError(f"{model['name']}: its weights exceed 2 GB, and browsers load no such file; export it without --page")
    try:
        assets = folder / ASSETS
        shutil.copytree(SCRIPTS, assets, ignore=shutil.ignore_patterns(INDEX, "__pycache__"))
        shutil.copyfile(SCRIPTS / INDEX, folder / INDEX)
        (assets / PACKAGE).mkdir()
        for file in LIBRARY:
            shutil.copyfile(library / "dist" / file, assets / PACKAGE / file)
        shutil.copyfile(library / "package.json", assets / PACKAGE / "package.json")  # its version and licence
        (assets / "models.json").write_text(json.dumps(models, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as exc:
        raise OutputError(f"{folder}: the page cannot be written ({exc})") from exc


def file_names() -> set[str]:
    """Return the names of all files of an ONNX folder with its page and an original."""
    model = {*BESIDE, *(name for graph in (ENCODER, DECODER) for name in (graph, f"{graph}{DATA}"))}
    page = {file.name for file in SCRIPTS.iterdir() if file.name != INDEX} | {"models.json"}
    page |= {f"{PACKAGE}/{name}" for name in (*LIBRARY, "package.json")}
    return model | {f"{ORIGINAL}/{name}" for name in model} | {f"{ASSETS}/{name}" for name in page} | {INDEX}
