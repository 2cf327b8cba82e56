"""The tokens that end a transcript, which settings give as one id or as a list: files that name one, and the page's decoding."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.backends.crispasr.writer import write_crispasr
from sottovoce.backends.onnx_runtime.web_page import SCRIPTS
from sottovoce.backends.sherpa_onnx.writer import write_sherpa
from sottovoce.backends.source import Source
from sottovoce.backends.transcribe_cpp.writer import write_gguf
from sottovoce.backends.whisper_cpp.writer import write_ggml
from sottovoce.errors import ExportError
from sottovoce.models.speech_model import SpeechModel
from sottovoce.models.whisper import Whisper
from tests.conftest import make_tiny_moonshine

END, OTHER = 2, 5
Write = Callable[[Source, Path], object]


def crispasr(source: Source, path: Path) -> None:
    path.mkdir()
    write_crispasr(source, path)


def sherpa(source: Source, path: Path) -> None:
    path.mkdir()
    write_sherpa(source, path)


def content(path: Path) -> list[bytes]:
    return [path.read_bytes()] if path.is_file() else [file.read_bytes() for file in sorted(path.iterdir())]


def assert_one_end_is_written(write: Write, model: SpeechModel, folder: Path) -> None:
    settings, (end,) = model.network.generation_config, model.end_tokens
    try:
        write(Source(model, {}), folder / "one")
        settings.eos_token_id = [end]
        write(Source(model, {}), folder / "list")
        assert content(folder / "one") == content(folder / "list")
        settings.eos_token_id = [end, OTHER]
        with pytest.raises(ExportError, match=f"ends a transcript at one token, and this model at any of {end}, {OTHER}"):
            write(Source(model, {}), folder / "several")
    finally:
        settings.eos_token_id = end


@pytest.mark.parametrize("write", [write_gguf, crispasr])
def test_files_of_moonshine_name_one_end(write: Write, tmp_path: Path) -> None:
    assert_one_end_is_written(write, make_tiny_moonshine(), tmp_path)


@pytest.mark.parametrize("write", [write_gguf, write_ggml])
def test_files_of_whisper_name_one_end(write: Write, tmp_path: Path, openai_like: Whisper) -> None:
    assert_one_end_is_written(write, openai_like, tmp_path)


def test_sherpa_ends_at_one_token(tmp_path: Path) -> None:
    model = make_tiny_moonshine()
    model.network.generation_config.eos_token_id = [END, OTHER]
    with pytest.raises(ExportError, match="sherpa-onnx ends a transcript at one token"):
        sherpa(Source(model, {}), tmp_path / "x")


@pytest.mark.parametrize("ends", [END, [END], [OTHER, END]])
def test_the_page_ends_at_one_token_or_a_list(ends: int | list[int], tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    shutil.copytree(SCRIPTS, tmp_path / "page")
    (tmp_path / "page" / "package.json").write_text('{"type": "module"}')
    library = tmp_path / "page" / "onnxruntime-web"
    library.mkdir()
    (library / "ort.wasm.min.mjs").write_text("export const env = { wasm: {} }; export class Tensor {}; export default { env, Tensor };")
    (tmp_path / "page" / "run.js").write_text(
        f"""globalThis.self = globalThis;  // which a browser has
const {{ Model }} = await import("./model.js");
const said = [7, 8, {END}, 9], model = Object.create(Model.prototype);
model.generation = {{ eos_token_id: {json.dumps(ends)} }};
model.config = {{ model_type: "moonshine", max_position_embeddings: 5 }};
model.step = async () => {{ const scores = new Float32Array(10); scores[said.shift()] = 1; return {{ scores, cache: {{}} }}; }};
console.log(JSON.stringify(await model.decode(null, [1])));
"""
    )
    printed = subprocess.run([node, str(tmp_path / "page" / "run.js")], capture_output=True, text=True, check=True).stdout  # noqa: S603
    assert json.loads(printed) == [7, 8]
