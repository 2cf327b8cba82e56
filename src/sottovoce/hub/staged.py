"""What goes to the Hub: the files of a quantized folder or of an export, checked, with a model card that names the repository."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import ModelCardData

from sottovoce.backends.backend import Backend
from sottovoce.backends.own_files import CARD_MARK, own_files
from sottovoce.backends.registry import backend_named, open_runtime, runtime_of
from sottovoce.checkpoint.layout import CARD
from sottovoce.checkpoint.manifest import MANIFEST, read_manifest, write_sealed
from sottovoce.checkpoint.model_card import FOLDER_IN_CARD
from sottovoce.checkpoint.verify import verify
from sottovoce.errors import CheckpointError
from sottovoce.models.load import public_name
from sottovoce.system.other_files import other_files


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A folder of links to the files that go to the Hub. `left_out`: files that lie beside them and that sottovoce did not write."""

    folder: Path
    files: int
    bytes: int
    left_out: tuple[str, ...]


def runtime_to_push(source: Path) -> str | None:
    """Return the runtime that an export is for, or None for a quantized folder. Raises `CheckpointError` for anything else."""
    if (source / MANIFEST).is_file():
        return None
    runtime = runtime_of(source)
    if runtime is None:
        what = "is neither a folder written by sottovoce nor an export of one" if source.exists() else "no such file or folder"
        raise CheckpointError(f"{source}: {what}; give the folder that `sottovoce quantize` or the file that `sottovoce export` wrote")
    return runtime


def stage(source: Path, runtime: str | None, repo: str, folder: Path) -> Staged:
    """Check `source` and link its files into the empty `folder`, with a card whose commands name `repo`.

    `runtime`: as `runtime_to_push` tells it. A quantized folder must pass `verify`, an export must load in its runtime. Raises
    `CheckpointError`, `ExportError` or `MissingDependencyError`.
    """
    if runtime is None:
        left_out = verify(source).unlisted
        _stage_quantized(source, repo, folder)
    else:
        open_runtime(runtime, source, torch.get_num_threads())
        left_out = _stage_export(source, backend_named(runtime), repo, folder)
    files = [file for file in folder.rglob("*") if file.is_file()]
    return Staged(folder=folder, files=len(files), bytes=sum(file.stat().st_size for file in files), left_out=left_out)


def _stage_quantized(source: Path, repo: str, folder: Path) -> None:
    """Link the listed files. The card names the repository, so the manifest gets its new checksum; it holds no path of this machine."""
    listed = read_manifest(source).files
    for name in listed.keys() - {CARD}:
        (folder / name).symlink_to((source / name).absolute())
    content = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
    for record, name in ((content, "source"), (content.get("tune") or {}, "original")):
        if name in record:
            record[name] = public_name(record[name])
    if CARD in listed:
        card = (source / CARD).read_text(encoding="utf-8").replace(FOLDER_IN_CARD, repo).encode()
        (folder / CARD).write_bytes(card)
        content["files"][CARD] = {"bytes": len(card), "sha256": hashlib.sha256(card).hexdigest()}
    write_sealed(folder, content)


def _stage_export(source: Path, backend: Backend, repo: str, folder: Path) -> tuple[str, ...]:
    """Link what the export wrote, with a card where it has none of ours. Return the names of other files in its folder."""
    root, names, left_out = source.parent, {source.name}, tuple[str, ...]()
    if source.is_dir():
        root, names = source, own_files(source, backend)
        left_out = tuple(other_files(source, names))
    for name in sorted(name for name in names if (root / name).is_file()):
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((root / name).absolute())
    if not (folder / CARD).exists():
        (folder / CARD).write_text(_export_card(source, backend, repo), encoding="utf-8")
    return left_out


def _export_card(source: Path, backend: Backend, repo: str) -> str:
    """Return the card of an export: what runs it, and how to fetch and try it."""
    metadata = ModelCardData(pipeline_tag="automatic-speech-recognition", tags=["sottovoce", backend.name])
    fetch = f"hf download {repo} {source.name} --local-dir ." if source.is_file() else f"hf download {repo} --local-dir {source.name}"
    lines = [
        "---",
        metadata.to_yaml(),
        "---",
        "",
        f"# {source.stem if source.is_file() else source.name}",
        "",
        f"A quantized speech recognizer for {backend.title}, {CARD_MARK}.",
        "",
        "```",
        fetch,
        f"sottovoce transcribe {source.name} speech.wav",
        "```",
        "",
    ]
    return "\n".join(lines)
