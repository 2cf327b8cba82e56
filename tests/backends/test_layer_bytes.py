"""Bytes of a layer from a few rows against the bytes of all rows, for every format that a backend holds."""

from pathlib import Path

import gguf
import pytest

from sottovoce import api
from sottovoce.backends.layer_bytes import layer_bytes, planned_bytes, widened_layers, zero_weight
from sottovoce.backends.registry import BACKENDS, target_named
from sottovoce.core.stochastic import Stochastic
from sottovoce.fitting.menu import menu_formats
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe
from tests.conftest import make_tiny, quantized


@pytest.mark.parametrize("name", ["compressed-tensors", "onnxruntime", "transcribe.cpp", "whisper.cpp"])
def test_a_few_rows_tell_the_bytes_of_all(name: str) -> None:
    backend = BACKENDS[name]
    assert not any(isinstance(f, Stochastic) for f in menu_formats(backend.target))
    held = [f for f in menu_formats(backend.target) if backend.target.refusal(f, "decoder mlp", 768) is None]
    assert len(held) > 2
    for number_format in held:
        for rows in (384, 96):
            whole = backend.tensor_bytes(zero_weight(number_format, rows, 768), "decoder mlp")
            assert layer_bytes(backend, number_format, "decoder mlp", (rows, 768)) == pytest.approx(whole, abs=4)


def test_bytes_of_known_blocks() -> None:
    """Q4_0: 18 bytes for 32 weights; Q8_0: 34."""
    backend = BACKENDS["transcribe.cpp"]
    assert layer_bytes(backend, backend.target.format(bits=4), "encoder", (10, 64)) == 10 * 2 * 18
    assert layer_bytes(backend, backend.target.format(bits=8), "head", (10, 64)) == 10 * 2 * 34


@pytest.mark.parametrize(("bits", "group_size", "widened"), [(2, 32, True), (4, 64, False), (6, 64, True), (8, 32, False)])
def test_planned_bytes_are_those_of_the_file(bits: int, group_size: int, widened: bool, tmp_path: Path) -> None:
    """Narrow codes are widened there, and large groups cut into blocks of 32."""
    recipe = Recipe(method=METHODS["rtn"], format=target_named("gguf").format(bits=bits, group_size=group_size))
    result = quantized(make_tiny(layers=1), recipe, target="transcribe.cpp")
    file = api.export(result, "transcribe.cpp", tmp_path / "t.gguf", verify=False).file
    stored = sum(tensor.n_bytes for tensor in gguf.GGUFReader(file).tensors if tensor.tensor_type.name.startswith("Q"))
    assert sum(planned_bytes(result.plan).values()) == stored
    assert bool(widened_layers(result.plan)) is widened
