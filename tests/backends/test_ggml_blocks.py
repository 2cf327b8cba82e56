"""Blocks against the dequantizer of the package `gguf`, on random and extreme values."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.backends.ggml_blocks import to_blocks
from sottovoce.core.affine import Affine
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.rtn import rtn
from sottovoce.errors import ExportError


class Uncheck(QuantizedTensor):
    """A weight whose groups no format of this package has."""

    def __post_init__(self) -> None:
        pass


def decoded(name: str, weight: QuantizedTensor) -> tuple[str, np.ndarray]:
    kind, blocks = to_blocks(name, weight)
    return kind, gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])


def random_tensor(seed: int, bits: int, group: int, symmetric: bool, size: float) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    top, groups = (1 << bits) - 1, 256 // group
    codes = torch.randint(0, top + 1, (3, 256), generator=generator).to(torch.uint8)
    scale = (size * torch.randn(3, groups, generator=generator)).half()
    if symmetric:
        zero = torch.full((3, groups), 1 << (bits - 1), dtype=torch.uint8)
    else:
        digits, exponent = torch.frexp(scale.float().abs().clamp(min=2.0**-18))
        scale = torch.ldexp(torch.round(digits * 64) / 64, exponent).half()
        zero = torch.randint(0, top + 1, (3, groups), generator=generator).to(torch.uint8)
    scale = torch.where(scale == 0, torch.tensor(2.0**-24).half(), scale)
    number_format = Affine(bits=bits, group_size=group, symmetric=symmetric, float16_min=not symmetric)
    return QuantizedTensor(codes, {"scale": scale, "zero_point": zero}, number_format)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([2, 3, 4, 5, 6, 8]), st.sampled_from([32, 64, 128]), st.booleans(),
    st.sampled_from([2.0**-24, 1e-5, 0.02, 1.0, 800.0]),
)  # fmt: skip
def test_the_formats_own_dequantizer_reads_the_very_same_numbers(seed: int, bits: int, group: int, symmetric: bool, size: float) -> None:
    weight = random_tensor(seed, bits, group, symmetric or bits > 4, size)
    kind, values = decoded("w", weight)
    assert kind == ("Q8_0" if bits > 5 else "Q5_0" if bits == 5 else "Q4_0" if weight.format.symmetric else "Q4_1")
    assert np.array_equal(values, weight.dequantize().numpy())


@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (3, False), (4, True), (4, False), (8, True)])
def test_weights_rounded_on_a_runtimes_grid(bits: int, symmetric: bool) -> None:
    torch.manual_seed(0)
    weight = 0.05 * torch.randn(16, 384)
    weight[0] = 0  # a row of zeros
    weight[1, 7] = 900.0  # one huge value
    weight[2] *= 1e-6  # scales below the normal float16 numbers
    quantized = rtn(weight, Affine(bits=bits, group_size=32, symmetric=symmetric, float16_min=not symmetric))
    _, values = decoded("w", quantized)
    assert np.array_equal(values, quantized.dequantize().numpy())
    assert not values[0].any()


def test_nibbles_lie_where_ggml_has_them() -> None:
    """Block by block, by the definition: byte j holds weight j in its low half and weight j + 16 in its high half."""
    quantized = rtn(torch.randn(1, 64, generator=torch.Generator().manual_seed(1)), Affine(bits=4, group_size=32, symmetric=True))
    _, blocks = to_blocks("w", quantized)
    for block in range(2):
        raw = blocks[0, 18 * block : 18 * (block + 1)]
        assert raw[:2].view("<f2")[0] == quantized.parameters["scale"][0, block].item()
        for j in range(16):
            assert raw[2 + j] & 15 == quantized.codes[0, 32 * block + j]
            assert raw[2 + j] >> 4 == quantized.codes[0, 32 * block + j + 16]


def test_what_blocks_cannot_hold_is_refused_with_the_way_out() -> None:
    weight = torch.randn(2, 96, generator=torch.Generator().manual_seed(2))
    whole = rtn(weight, Affine(bits=4, group_size=None, symmetric=True))
    halves = {name: tensor.repeat_interleave(2, 1) for name, tensor in whole.parameters.items()}
    with pytest.raises(ExportError, match=r"w: groups of 48 .* --group-size 32"):
        to_blocks("w", Uncheck(whole.codes, halves, whole.format))
    with pytest.raises(ExportError, match="ggml has no blocks for '8 bits, groups of 32'"):
        to_blocks("w", rtn(weight, Affine(bits=8, group_size=32)))
    with pytest.raises(ExportError, match="no float16 numbers"):
        to_blocks("w", rtn(weight, Affine(bits=4, group_size=32)))
