"""The Moonshine with real words that comes with the package: what it hears, at 4 bits and in the runtimes too."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from sottovoce import api
from sottovoce.backends.registry import target_named
from sottovoce.demo.commands import TEMPLATES, command_sentences, make_commands, split_of
from sottovoce.errors import ModelError
from sottovoce.evaluation.normalize import normalize
from sottovoce.models import bundled
from sottovoce.quantization.recipe import Recipe

SENTENCES = 60
MODEL = "bundled:moonshine-micro"

pytestmark = pytest.mark.skipif(find_spec("hibari") is None, reason="hibari-tts, which speaks the sentences, is not installed")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unseen sentences, and others to calibrate on."""
    folder = tmp_path_factory.mktemp("commands")
    make_commands(folder / "test", "test", SENTENCES)
    make_commands(folder / "calibration", "calibration", 32)
    return folder


@pytest.fixture(scope="module")
def folder(spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 bits in ggml's blocks, head and embedding included."""
    out = tmp_path_factory.mktemp("micro") / "micro-4bit"
    api.quantize(MODEL, out, recipe=Recipe(format=target_named("gguf").format()), calibration=spoken / "calibration", target="gguf")
    return out


def test_splits_never_meet() -> None:
    splits = {split: set(command_sentences(split, 300)) for split in ("train", "calibration", "test")}
    assert not splits["train"] & splits["test"]
    assert not splits["calibration"] & splits["test"]
    assert all(split_of(sentence) == split for split, found in splits.items() for sentence in found)
    taught = {word for sentence in command_sentences("train", 12_000) for word in sentence.split()}
    assert {word for sentence in splits["test"] for word in sentence.split()} <= taught
    assert all(split_of(template) == "train" for template in TEMPLATES if "{" not in template)


def test_it_is_small_and_hears_what_it_was_never_taught(spoken: Path) -> None:
    files = bundled.OWN["moonshine-micro"]
    assert (files / "model.safetensors").stat().st_size < 12e6
    assert "Word error rate" in (files / "README.md").read_text()
    score = api.evaluate(MODEL, spoken / "test").score
    assert score.words > 300
    assert score.wer < 0.08
    assert not score.looped


def test_four_bits_are_heard_alike_in_every_runtime(folder: Path, spoken: Path, tmp_path: Path) -> None:
    wanted = api.evaluate(folder, spoken / "test")
    assert wanted.score.wer < 0.12
    for format, file in (("gguf", "micro.gguf"), ("onnx", "micro-onnx")):  # noqa: A001
        exported = api.export(folder, format, tmp_path / file, speech=spoken / "calibration")
        heard = api.evaluate(exported.file, spoken / "test")
        pairs = zip(heard.transcription.transcripts, wanted.transcription.transcripts, strict=True)
        equal = sum(normalize(a.text) == normalize(b.text) for a, b in pairs)
        assert equal >= 0.9 * SENTENCES, format


def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(bundled.OWN["moonshine-micro"], tmp_path / "copy"))
    raw = bytearray((copy / "model.safetensors").read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / "model.safetensors").write_bytes(raw)
    monkeypatch.setitem(bundled.OWN, "moonshine-micro", copy)
    with pytest.raises(ModelError, match="reinstall"):
        api.load(MODEL)
