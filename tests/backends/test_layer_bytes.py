"""Bytes of a layer from a few rows against the bytes of all rows, for every format that a backend holds."""

import pytest

from sottovoce.backends.layer_bytes import layer_bytes, zero_weight
from sottovoce.backends.registry import BACKENDS
from sottovoce.fitting.menu import menu_formats


@pytest.mark.parametrize("name", ["compressed-tensors", "onnxruntime", "transcribe.cpp", "whisper.cpp"])
def test_a_few_rows_tell_the_bytes_of_all(name: str) -> None:
    backend = BACKENDS[name]
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
