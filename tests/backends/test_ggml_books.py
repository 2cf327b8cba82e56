"""Blocks of books of levels: what the package `gguf` decodes is what the format says, exactly; and ggml's own header is followed."""

import re

import gguf
import pytest
import torch

from sottovoce.backends.ggml_blocks import kind_of, to_blocks
from sottovoce.backends.ggml_types import BLOCK_TYPES
from sottovoce.backends.registry import target_named
from sottovoce.core.formats import format_named
from sottovoce.core.iq4 import IQ4XS
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.rtn import rtn

NAMES = ("iq4_nl", "iq4_xs", "mxfp4", "nvfp4_ggml")


def random_tensor(number_format: NumberFormat, seed: int) -> QuantizedTensor:
    """Codes and parameters of any value that the format allows, sub-scales among them."""
    torch.manual_seed(seed)
    fitted = rtn(torch.randn(5, 512) * torch.rand(5, 16).repeat_interleave(32, -1) * 0.2, number_format)
    parameters = dict(fitted.parameters)
    if isinstance(number_format, IQ4XS):
        parameters["sub_scale"] = torch.randint(-32, 32, parameters["sub_scale"].shape, dtype=torch.int8)
    return QuantizedTensor(torch.randint(0, 16, (5, 512), dtype=torch.uint8), parameters, number_format)


@pytest.mark.parametrize("name", NAMES)
def test_gguf_decodes_the_same_values(name: str) -> None:
    for seed in range(3):
        quantized = random_tensor(format_named(name), seed)
        kind, data = to_blocks("fc", quantized)
        decoded = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
        assert torch.equal(torch.from_numpy(decoded.copy()), quantized.dequantize())
        assert data.nbytes * 8 == quantized.bits_per_weight * quantized.codes.numel()


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_types_are_those_of_gguf(name: str) -> None:
    kind = str(kind_of(format_named(name)))
    known = gguf.GGMLQuantizationType[kind]
    assert (BLOCK_TYPES[kind].number, BLOCK_TYPES[kind].weights, BLOCK_TYPES[kind].bytes) == (known.value, *gguf.GGML_QUANT_SIZES[known])
    of_file = next(t for t in gguf.LlamaFileType if re.fullmatch(f"MOSTLY_{kind}(_MOE)?", t.name))
    assert BLOCK_TYPES[kind].gguf_file_type == of_file.value


def test_targets_refuse_with_a_reason() -> None:
    def reason(target: str, name: str, width: int = 512) -> str | None:
        return target_named(target).misfit(format_named(name), "encoder", width)

    assert [reason("whisper.cpp", name) for name in NAMES] == [None] * len(NAMES)
    assert "blocks of 256 do not divide a row of 384" in str(reason("whisper.cpp", "iq4_xs", 384))
    assert "does not execute IQ4_NL" in str(reason("transcribe.cpp", "iq4_nl"))
    assert "no blocks for 'NVFP4'" in str(reason("whisper.cpp", "nvfp4"))
    assert reason("whisper.cpp", "stochastic4_0") is None
    assert "no blocks for" in str(reason("whisper.cpp", "pow2_4"))
