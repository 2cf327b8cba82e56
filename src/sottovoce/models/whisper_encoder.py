"""Whisper's encoder on the first positions of its window only."""

from typing import Any

from torch import Tensor, nn

FRAMES_PER_POSITION = 2  # the second convolution halves the mel frames


def encode_first(encoder: Any, features: Tensor, positions: int) -> Tensor:
    """Return the states `[B, positions, d]` that an encoder gives whose position table ends after `positions`.

    `features`: log-mel frames `[B, mels, frames]`, of which the first `2 * positions` are used. As whisper.cpp does with `audio_ctx`.
    """
    states = nn.functional.gelu(encoder.conv1(features[..., : FRAMES_PER_POSITION * positions]))
    states = nn.functional.gelu(encoder.conv2(states)).permute(0, 2, 1)
    states = states + encoder.embed_positions.weight[:positions]
    for layer in encoder.layers:
        states = layer(states, None)
    normalized: Tensor = encoder.layer_norm(states)
    return normalized
