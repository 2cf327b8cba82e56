import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.core.affine import Affine
from sottovoce.core.packing import pack_rows, unpack_rows
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.rtn import rtn
from sottovoce.errors import CheckpointError


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 4, 8]), st.integers(1, 5), st.integers(1, 100))
def test_round_trip_and_equality_with_compressed_tensors(seed: int, bits: int, rows: int, n: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, n), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    words = pack_rows(codes, bits)
    assert torch.equal(unpack_rows(words, bits, n), codes)
    signed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(words, pack_to_int32(signed, bits))
    assert torch.equal(unpack_from_int32(words, bits, torch.Size((rows, n))), signed)


def test_worked_example() -> None:
    assert pack_rows(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]], dtype=torch.uint8), 4).tolist() == [[-2023406815]]  # 0x87654321
    # The eleventh 3-bit code straddles the border of two words.
    words = pack_rows(torch.tensor([[0] * 10 + [7]], dtype=torch.uint8), 3)
    assert words.tolist() == [[-1073741824, 1]]


def test_wrong_number_of_words() -> None:
    with pytest.raises(CheckpointError, match="cannot hold exactly 9 codes"):
        unpack_rows(torch.zeros(1, 1, dtype=torch.int32), 4, 9)


def good(number_format: Affine | None = None, **changes: torch.Tensor) -> QuantizedTensor:
    parts = {
        "codes": torch.zeros(2, 64, dtype=torch.uint8),
        "scale": torch.ones(2, 2, dtype=torch.float16),
        "zero_point": torch.zeros(2, 2, dtype=torch.uint8),
    } | changes
    return QuantizedTensor(parts.pop("codes"), parts, number_format or Affine(bits=4, group_size=32))


def test_invariants_of_a_quantized_tensor() -> None:
    assert good().shape == (2, 64)
    assert good().bits_per_weight == 4 + 20 / 32
    half = torch.float16
    for number_format, changes, words in [
        (None, {"codes": torch.zeros(2, 64)}, "wanted uint8"),
        (None, {"codes": torch.full((2, 64), 16, dtype=torch.uint8)}, "exceeds 15"),
        (None, {"scale": torch.ones(2, 3, dtype=half), "zero_point": torch.zeros(2, 3, dtype=torch.uint8)}, r"wanted \(2, 2\)"),
        (None, {"scale": torch.ones(2, 2)}, "wanted float16, uint8"),
        (None, {"scale": torch.zeros(2, 2, dtype=half)}, "positive finite"),
        (None, {"scale": torch.full((2, 2), float("nan"), dtype=half)}, "positive finite"),
        (None, {"zero_point": torch.full((2, 2), 16, dtype=torch.uint8)}, "zero point exceeds 15"),
        (Affine(symmetric=True), {}, "zero point other than 8"),
        (Affine(symmetric=True), {"scale": torch.zeros(2, 2, dtype=half)}, "other than 0"),
        (
            Affine(float16_min=True),
            {"scale": torch.full((2, 2), 1.001, dtype=half), "zero_point": torch.full((2, 2), 7, dtype=torch.uint8)},
            "minimum is not a float16",
        ),
        (None, {"scale": torch.ones(3, 2, dtype=half), "zero_point": torch.zeros(3, 2, dtype=torch.uint8)}, r"wanted \(2, 2\)"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            good(number_format, **changes)


@pytest.mark.parametrize("number_format", [Affine(bits=3), Affine(bits=4, symmetric=True), Affine(bits=2, group_size=None)])
def test_a_tensor_is_the_same_after_packing(number_format: Affine) -> None:
    weight = rtn(torch.randn(5, 96, generator=torch.Generator().manual_seed(1)), number_format)
    again = QuantizedTensor.unpack(weight.pack(), number_format)
    assert torch.equal(again.codes, weight.codes)
    assert torch.equal(again.dequantize(), weight.dequantize())
    short = {name: tensor for name, tensor in weight.pack().items() if name != "weight_scale"}
    with pytest.raises(CheckpointError, match="'weight_scale' is missing"):
        QuantizedTensor.unpack(short, number_format)
