"""The published Moonshine base at 4 bits: its own words in PyTorch and transcribe.cpp (ONNX Runtime: `benchmarks/runtimes.py`)."""

from pathlib import Path

import pytest

from sottovoce import api
from sottovoce.backends.registry import target_named
from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.errors import RecipeError
from sottovoce.evaluation.normalize import normalize
from sottovoce.models.moonshine import Moonshine
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe

WORDS = "Ever tried, ever failed, no matter. Try again, fail again, fail better."


def test_four_bits_keep_the_words_in_a_runtime(moonshine_base: Moonshine, moonshine_speech: Path, tmp_path: Path) -> None:
    """Head and token embedding included; the file is verified by export, and hears what PyTorch hears."""
    backend = "transcribe.cpp"
    data = DataSet("beckett", (Utterance(id="beckett", audio=moonshine_speech, text=WORDS),))
    recipe = Recipe(method=method_named("rtn"), format=target_named(backend).format(bits=4, observer="minmax"))
    api.quantize(moonshine_base, tmp_path / "folder", recipe=recipe, target=backend)
    assert (tmp_path / "folder" / "model.safetensors").stat().st_size < 45e6  # 28.97 MB are codes of 4 bits; float16 takes 123 MB
    assert api.verify(tmp_path / "folder") is not None
    wanted = api.evaluate(tmp_path / "folder", data, against=moonshine_base)
    assert wanted.reference is not None
    assert wanted.reference.score.wer == 0.0
    assert wanted.score.wer <= 1 / 12
    exported = api.export(tmp_path / "folder", backend, tmp_path / "exported")
    heard = api.evaluate(exported.file, data)
    assert normalize(heard.transcription.transcripts[0].text) == normalize(wanted.transcription.transcripts[0].text)


@pytest.mark.parametrize("group_size", [64, 128])
def test_groups_that_do_not_divide_416_are_refused_before_any_work(group_size: int, moonshine_base: Moonshine, tmp_path: Path) -> None:
    recipe = Recipe(method=method_named("rtn"), format=target_named("onnxruntime").format(group_size=group_size))
    with pytest.raises(RecipeError, match=rf"groups of {group_size} do not divide a row of 416; these do: 32, a whole row"):
        api.quantize(moonshine_base, tmp_path / "out", recipe=recipe)
    assert not list(tmp_path.iterdir())
