"""Whisper's encoder on less than its window, and its decoder on batches of such outputs.

`transformers` runs the encoder on whole windows only (`WhisperEncoder.forward` refuses others), and the decoder without a mask of the
encoder's outputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def encode_window(encoder: Any, features: Tensor) -> Tensor:
    """Encode log-mel frames `[B, mels, 2 N]` with the first N rows of the position table; return `[B, N, d]`.

    With all frames of the window the result is that of `WhisperEncoder.forward` (evaluation mode).
    """
    states = nn.functional.gelu(encoder.conv1(features))
    states = nn.functional.gelu(encoder.conv2(states)).permute(0, 2, 1)
    # The module is called, rather than its weight read: weights may lie on another device until then.
    states = states + encoder.embed_positions(torch.arange(states.shape[1], device=states.device))
    for layer in encoder.layers:
        states = layer(states, None)
    result: Tensor = encoder.layer_norm(states)
    return result


@contextmanager
def masked_cross_attention(decoder: Any, mask: Tensor | None) -> Iterator[None]:
    """Let every layer of a `WhisperDecoder` attend only to encoder outputs where bool `mask` `[B, N]` is true; None: to all."""
    if mask is None:
        yield
        return
    dtype = decoder.layer_norm.weight.dtype
    added = torch.zeros(mask.shape, dtype=dtype, device=decoder.layer_norm.weight.device)
    added = added.masked_fill(~mask.to(added.device), torch.finfo(dtype).min)[:, None, None, :]

    def give(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments, named | {"encoder_attention_mask": added}

    hooks = [layer.register_forward_pre_hook(give, with_kwargs=True) for layer in decoder.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
