"""A certificate goes into the folder that the file was exported from, and into no other."""

import logging
from pathlib import Path

import pytest

from sottovoce import api
from sottovoce.api.origin import check_origin
from sottovoce.backends.registry import target_named
from sottovoce.backends.source import Source
from sottovoce.backends.transcribe_cpp.writer import write_gguf
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.errors import ExportError, RecipeError
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from tests.backends.conftest import small_openai
from tests.conftest import make_tiny


def quantized(model: SpeechModel, out: Path, bits: int, target: str) -> Path:
    api.quantize(model, out, recipe=Recipe(method=method_named("rtn"), format=target_named(target).format(bits=bits)), target=target)
    return out


@pytest.mark.parametrize(
    ("target", "file", "words"),
    [
        ("transcribe.cpp", "t.gguf", "was not exported from .*five, whose weights are others"),
        ("whisper.cpp", "t.bin", "is not what .*five exports for whisper.cpp"),
    ],
)
def test_a_file_of_another_folder_is_refused(target: str, file: str, words: str, tmp_path: Path) -> None:
    model = make_tiny(layers=1) if target == "transcribe.cpp" else small_openai(layers=1)
    four, five = (quantized(model, tmp_path / name, bits, target) for name, bits in (("four", 4), ("five", 5)))
    exported = api.export(four, target, tmp_path / file, verify=False).file
    check_origin(exported, four, read_manifest(four))
    with pytest.raises(RecipeError, match=words):
        check_origin(exported, five, read_manifest(five))
    check_origin(four, four, read_manifest(four))
    with pytest.raises(RecipeError, match="four: is no exported file"):
        check_origin(four, five, read_manifest(five))


def test_a_file_that_does_not_say_is_taken_at_the_users_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_tiny(layers=1)
    folder = quantized(model, tmp_path / "four", 4, "transcribe.cpp")
    write_gguf(Source(model, {}), tmp_path / "old.gguf")
    with caplog.at_level(logging.WARNING, "sottovoce"):
        check_origin(tmp_path / "old.gguf", folder, read_manifest(folder))
    assert "does not say which folder it comes from" in caplog.text


def test_a_damaged_file_is_told_in_one_sentence(tmp_path: Path) -> None:
    folder = quantized(make_tiny(layers=1), tmp_path / "four", 4, "transcribe.cpp")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(ExportError, match=r"cut\.gguf: cannot be read as a file of transcribe\.cpp .*export it again"):
        check_origin(tmp_path / "cut.gguf", folder, read_manifest(folder))
