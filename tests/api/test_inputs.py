"""What the verbs are given: a quantized folder is no original."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sottovoce import api
from sottovoce.checkpoint.load import load
from sottovoce.errors import ModelError
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe

RTN = Recipe(method=METHODS["rtn"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "tiny-4bit"
    api.quantize(model_folder, out, recipe=RTN)
    return out


@pytest.mark.parametrize(
    "verb",
    [
        lambda folder, out, _speech: api.quantize(folder, out, recipe=RTN),
        lambda folder, out, _speech: api.quantize(api.load(folder), out, recipe=RTN),
        lambda folder, _out, _speech: api.make_plan(folder),
        lambda folder, out, speech: api.fit(folder, out, max_size=100_000, calibration=speech),
        lambda folder, out, speech: api.tune(folder, out, calibration=speech, against=folder),
    ],
    ids=["quantize", "a loaded model", "make_plan", "fit", "tune against"],
)
def test_a_quantized_folder_is_no_original(
    verb: Callable[..., Any], folder: Path, model_folder: Path, speech_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as error:
        verb(folder, tmp_path / "out", speech_folder)
    assert str(error.value) == f"{folder}: was quantized already; give the original ({model_folder})"
    assert not (tmp_path / "out").exists()


def test_the_mark_goes_along_with_the_network(folder: Path, model_folder: Path) -> None:
    model = load(folder)
    assert model.with_network(model.network).quantized_from == str(model_folder)
    assert api.load(model_folder).quantized_from is None
