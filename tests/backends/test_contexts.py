"""The same part of the encoder's window gives the same words in every runtime that takes parts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from sottovoce import api
from sottovoce.backends.onnx_runtime.layout import ENCODER
from sottovoce.backends.onnx_runtime.writer import write_onnx
from sottovoce.backends.registry import open_runtime
from sottovoce.backends.source import Source
from sottovoce.backends.transcribe_cpp.runtime import TranscribeCppRecognizer
from sottovoce.backends.whisper_cpp.writer import write_ggml
from sottovoce.checkpoint.manifest import read_manifest, write_manifest
from sottovoce.core.affine import Affine
from sottovoce.errors import ExportError, ModelError
from sottovoce.evaluation.context import FULL, ShortContext, as_context
from sottovoce.evaluation.recognizer import NO_WINDOW, TorchRecognizer, WindowedRecognizer, window_of
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from tests.backends.conftest import small_openai
from tests.conftest import make_tiny

TUNED = ShortContext(margin=16, smallest=30)


def clips(seconds: list[float]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(0.1 * random.standard_normal(int(16000 * length))).astype(np.float32) for length in seconds]


@pytest.fixture(scope="module")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> tuple[Whisper, Path]:
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    model = make_tiny(seed=1, layers=1)
    write_onnx(Source(model, {}, TUNED), folder)
    return model, folder


def test_onnx_equals_pytorch_on_twenty_clips(tiny_onnx: tuple[Whisper, Path]) -> None:
    model, folder = tiny_onnx
    recordings = clips([0.1 + 0.09 * i for i in range(20)])
    window, context = window_of(TorchRecognizer(model)), as_context("+10")
    contexts = [context.of(len(samples), window) for samples in recordings]
    assert contexts[-1] is None  # to the end of the window
    assert len(set(contexts)) > 15
    recognizer = open_runtime("onnx", folder, 1)
    assert isinstance(recognizer, WindowedRecognizer)
    got = recognizer.recognize(recordings, None, confidence=True, contexts=contexts).recognitions
    wanted = TorchRecognizer(model).recognize(recordings, None, confidence=True, contexts=contexts).recognitions
    assert [g.tokens for g in got] == [w.tokens for w in wanted]
    assert len({g.tokens for g in got}) > 5
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_allclose(g.log_probabilities, w.log_probabilities, atol=1e-3)
    assert got[3].tokens != recognizer.recognize(recordings[3:4], None).recognitions[0].tokens


def test_an_onnx_folder_says_what_it_was_tuned_for(tiny_onnx: tuple[Whisper, Path], tmp_path: Path) -> None:
    _, folder = tiny_onnx
    assert window_of(open_runtime("onnx", folder, 1)).tuned == TUNED
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"sottovoce_short_context": {"margin": "x", "smallest": 1}}))
    with pytest.raises(ExportError, match=r"sottovoce_short_context in config.json makes no sense .*export it again"):
        open_runtime("onnx", copy, 1)


def test_a_folder_exported_for_whole_windows_says_what_to_do(tiny_onnx: tuple[Whisper, Path], tmp_path: Path) -> None:
    """As earlier versions wrote it: the number of frames is part of the graph."""
    _, folder = tiny_onnx
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    graph = onnx.load(copy / ENCODER)
    frames = graph.graph.input[0].type.tensor_type.shape.dim[2]
    frames.ClearField("dim_param")
    frames.dim_value = 200
    onnx.save(graph, copy / ENCODER)
    recognizer = open_runtime("onnx", copy, 1)
    assert len(recognizer.recognize(clips([0.5]), None).recognitions[0].tokens) > 0
    with pytest.raises(ModelError, match="its encoder was exported for whole windows only; export the quantized folder again"):
        as_context("+16").resolve(window_of(recognizer), "copy")


def test_a_tuned_folder_runs_short_in_another_runtime(speech_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(method=method_named("rtn"), format=Affine(bits=8, group_size=32))
    api.quantize(make_tiny(layers=1), tmp_path / "q", recipe=recipe, target="onnxruntime")
    write_manifest(tmp_path / "q", replace(read_manifest(tmp_path / "q"), short_context=TUNED))
    sound = [speech_folder / "u0.wav"]  # 0.75 s
    recognizer = api.open_recognizer(tmp_path / "q", "onnx")
    assert api.transcribe(recognizer, sound).transcripts[0].context == 38 + 16
    assert api.transcribe(recognizer, sound, context="full").transcripts[0].context is None
    config = json.loads((Path(recognizer.source) / "config.json").read_text())
    assert config["sottovoce_short_context"] == {"margin": 16, "smallest": 30}


def test_whisper_cpp_hears_what_pytorch_hears_whatever_it_heard_before(tmp_path: Path) -> None:
    """A model of one layer, so that half precision does not lead astray; flash attention would hear the recording before."""
    model = small_openai(layers=1)
    write_ggml(Source(model, {}), tmp_path / "f16.bin")
    recordings, contexts = clips([1.0, 20.0, 1.0, 2.5, 3.0]), [66, 1100, 66, None, 160]
    recordings[2] = recordings[0]
    wanted = TorchRecognizer(model).recognize(recordings, None, confidence=True, contexts=contexts).recognitions
    recognizer = open_runtime("ggml", tmp_path / "f16.bin", 1)
    assert isinstance(recognizer, WindowedRecognizer)
    assert recognizer.window.positions == 1500
    found = recognizer.recognize(recordings, None, confidence=True, contexts=contexts).recognitions
    assert found[0] == found[2]
    for place in (0, 1, 2, 4):  # a whole window runs with flash attention, in half precision
        assert found[place].tokens[:4] == wanted[place].tokens[:4]
        np.testing.assert_allclose(found[place].log_probabilities[:4], wanted[place].log_probabilities[:4], atol=0.15)
    whole = recognizer.recognize(recordings[:1], None).recognitions[0]
    assert whole.tokens[:2] != found[0].tokens[:2]
    assert recognizer.recognize(recordings[3:4], None).recognitions[0].tokens == found[3].tokens


def test_transcribe_cpp_and_unknown_recognizers_take_whole_windows() -> None:
    window = TranscribeCppRecognizer.window
    with pytest.raises(
        ModelError, match=r"^a.gguf: transcribe.cpp always runs the encoder on its whole window; leave the context \+16 out"
    ):
        as_context("+16").resolve(window, "a.gguf")
    assert as_context("auto").resolve(window, "a.gguf") == FULL

    class Own:
        source = "own"

    assert window_of(Own()) is NO_WINDOW  # type: ignore[arg-type]
