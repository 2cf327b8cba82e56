"""Whisper's encoder and decoder as sherpa-onnx calls them (its `scripts/whisper/export-onnx.py`, `offline-whisper-model.cc`).

Encoder: `mel` `[1, mels, frames]`, at most 30 s, to the keys and values of cross-attention of all layers `[layers, 1, positions, d]`.
Decoder: `tokens` `[1, T]`, caches `[layers, 1, context, d]`, the encoder's outputs and `offset` `[1]`, the number of tokens before, to
`logits` and the caches with T more tokens.

Two things differ from that script. Logits are those of the last token alone, which is all that is read. The model's suppressed tokens
are out of reach in the graph, as sherpa-onnx keeps no list of them.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sottovoce.backends.onnx_runtime.graph import multi_head_attention
from sottovoce.models.whisper_encoder import encode_window

ENCODER_OUTPUTS = ["n_layer_cross_k", "n_layer_cross_v"]
DECODER_INPUTS = ["tokens", "in_n_layer_self_k_cache", "in_n_layer_self_v_cache", *ENCODER_OUTPUTS, "offset"]
DECODER_OUTPUTS = ["logits", "out_n_layer_self_k_cache", "out_n_layer_self_v_cache"]
EXAMPLE_FRAMES, EXAMPLE_TOKENS, EXAMPLE_POSITIONS = 200, 3, 7  # sizes that the exporter sees; none is kept


class WhisperEncoderGraph(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.encoder = network.model.encoder
        self.attentions = nn.ModuleList(layer.encoder_attn for layer in network.model.decoder.layers)

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        x = encode_window(self.encoder, mel)
        keys, values = ([getattr(attention, name)(x) for attention in self.attentions] for name in ("k_proj", "v_proj"))
        return torch.stack(keys), torch.stack(values)

    def example(self, mels: int) -> tuple[tuple[Tensor, ...], Any]:
        """Return arguments, and which of their sizes are free."""
        return (torch.randn(1, mels, EXAMPLE_FRAMES),), ({2: torch.export.Dim("frames", min=2, max=3000)},)


class WhisperDecoderGraph(nn.Module):
    """`suppressed`: ids that are never chosen; `suppressed_first`: ids that are not chosen right after the prompt."""

    def __init__(self, network: Any, suppressed: list[int], suppressed_first: list[int]) -> None:
        super().__init__()
        self.decoder, self.head = network.model.decoder, network.proj_out
        attention = self.decoder.layers[0].self_attn
        self.heads, self.size, self.scaling = int(attention.num_heads), int(attention.head_dim), float(attention.scaling)
        self.context = int(network.config.max_target_positions)
        self.suppressed, self.suppressed_first = suppressed, suppressed_first

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor, cross_keys: Tensor, cross_values: Tensor, offset: Tensor) -> Any:
        steps = torch.arange(tokens.shape[1])
        places = offset + steps
        x = self.decoder.embed_tokens(tokens) + self.decoder.embed_positions.weight.index_select(0, places)
        # The caches are the caller's to carry, not to read: they hold head after head, which spares a transposition of each.
        keys, values = (cache.reshape(-1, self.heads, self.context, self.size) for cache in (keys, values))
        empty, later = torch.arange(self.context) >= offset, steps.unsqueeze(0) > steps.unsqueeze(1)
        own_keys, own_values = list[Tensor](), list[Tensor]()
        for i, layer in enumerate(self.decoder.layers):
            y, attention = layer.self_attn_layer_norm(x), layer.self_attn
            query, key, value = (self._split(project(y)) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
            query = query * self.scaling
            before = (query @ keys[i].transpose(1, 2)).masked_fill(empty, float("-inf"))
            now = (query @ key.transpose(1, 2)).masked_fill(later, float("-inf"))
            share = torch.softmax(torch.cat([before, now], -1), -1)
            found = share[..., : self.context] @ values[i] + share[..., self.context :] @ value
            x = x + attention.out_proj(found.transpose(0, 1).flatten(1).unsqueeze(0))
            attention = layer.encoder_attn
            query = attention.q_proj(layer.encoder_attn_layer_norm(x))
            x = x + attention.out_proj(multi_head_attention(query, cross_keys[i], cross_values[i], self.heads, self.scaling))
            x = x + layer.fc2(nn.functional.gelu(layer.fc1(layer.final_layer_norm(x))))
            own_keys.append(key)
            own_values.append(value)
        logits = self.head(self.decoder.layer_norm(x[:, -1:]))
        logits = self._without(logits, self.suppressed)
        logits = torch.where(offset == 0, self._without(logits, self.suppressed_first), logits)
        return logits, self._with_own(keys, own_keys, places), self._with_own(values, own_values, places)

    def _split(self, x: Tensor) -> Tensor:
        """`[1, T, d]` to `[heads, T, size]`."""
        return x.reshape(-1, self.heads, self.size).transpose(0, 1)

    @staticmethod
    def _without(logits: Tensor, tokens: list[int]) -> Tensor:
        return logits.index_fill(2, torch.tensor(tokens), float("-inf")) if tokens else logits

    def _with_own(self, cache: Tensor, own: list[Tensor], places: Tensor) -> Tensor:
        new = torch.stack(own)
        at = places.view(1, 1, -1, 1).expand(new.shape)
        return cache.scatter(2, at, new).reshape(len(own), 1, self.context, self.heads * self.size)

    def example(self) -> tuple[tuple[Tensor, ...], Any]:
        """Return arguments, and which of their sizes are free."""
        layers, width = len(self.decoder.layers), self.heads * self.size
        caches = [torch.zeros(layers, 1, self.context, width) for _ in range(2)]
        cross = [torch.randn(layers, 1, EXAMPLE_POSITIONS, width) for _ in range(2)]
        tokens, positions = torch.export.Dim("n_tokens"), torch.export.Dim("positions")
        arguments = (torch.full((1, EXAMPLE_TOKENS), 1), *caches, *cross, torch.tensor([0]))
        return arguments, ({1: tokens}, {}, {}, {2: positions}, {2: positions}, {})
