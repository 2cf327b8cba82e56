import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.core.packing import pack_rows, unpack_rows
from sottovoce.core.qtensor import QuantizedTensor
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


def good(**changes: object) -> QuantizedTensor:
    parts = {
        "codes": torch.zeros(2, 8, dtype=torch.uint8),
        "scale": torch.ones(2, 2, dtype=torch.float16),
        "zero_point": torch.zeros(2, 2, dtype=torch.uint8),
        "bits": 4,
        "symmetric": False,
    }
    return QuantizedTensor(**(parts | changes))


def test_invariants_of_a_quantized_tensor() -> None:
    assert good().group_size == 4
    assert good().bits_per_weight == 4 + 20 / 4
    for changes, words in [
        ({"codes": torch.zeros(2, 8)}, "wanted uint8"),
        ({"codes": torch.full((2, 8), 16, dtype=torch.uint8)}, "exceeds 15"),
        (
            {"scale": torch.ones(2, 3, dtype=torch.float16), "zero_point": torch.zeros(2, 3, dtype=torch.uint8)},
            "do not fit",
        ),
        ({"scale": torch.zeros(2, 2, dtype=torch.float16)}, "positive finite"),
        ({"scale": torch.full((2, 2), float("nan"), dtype=torch.float16)}, "positive finite"),
        ({"symmetric": True}, "zero point other than 8"),
        (
            {"scale": torch.ones(3, 2, dtype=torch.float16), "zero_point": torch.zeros(3, 2, dtype=torch.uint8)},
            "do not fit",
        ),
    ]:
        with pytest.raises(CheckpointError, match=words):
            good(**changes)
