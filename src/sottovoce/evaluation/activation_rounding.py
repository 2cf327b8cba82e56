"""Low-bit kernels on CPUs round what goes into a matrix product to 8 bits, block by block: the same in PyTorch.

ggml's `quantize_row_q8_0` and ONNX Runtime's `MatMulNBits` at `accuracy_level` 4 both do it: of 32 neighboring inputs the largest
magnitude becomes 127, and the others are rounded on that scale; products are then exact. What is simulated with it differs from
such a runtime only by the order of sums, by attention in half precision and by tabulated activations.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sottovoce.models.speech_model import SpeechModel

BLOCK = 32


def round_to_int8(x: Tensor, *, block: int = BLOCK, half_scales: bool = True) -> Tensor:
    """Round `x` `[..., n]` to multiples of its blocks' largest magnitude / 127.

    `block`: neighboring values that share a scale; it must divide n. `half_scales`: round the scales to float16, as ggml does.
    """
    grouped = x.reshape(*x.shape[:-1], -1, block)
    scale = grouped.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(scale > 0, grouped / scale, 0.0).round()
    stored = scale.half().to(x.dtype) if half_scales else scale
    rounded: Tensor = (codes * stored).reshape(x.shape)
    return rounded


@contextmanager
def int8_activations(model: SpeechModel, names: Iterable[str], *, block: int = BLOCK, half_scales: bool = True) -> Iterator[None]:
    """Round the inputs of the linear layers called `names` to 8 bits inside the `with` block."""

    def hook(_module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (round_to_int8(inputs[0], block=block, half_scales=half_scales), *inputs[1:])

    handles = [model.module(name).register_forward_pre_hook(hook) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
