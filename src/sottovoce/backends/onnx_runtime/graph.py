"""ONNX for ONNX Runtime: encoder, and decoder with key-value cache, with low-bit matrix products.

Files and names are those of Hugging Face Optimum, which transformers.js and onnx-asr read too: `onnx/encoder_model.onnx` (features to
`last_hidden_state`) and `onnx/decoder_model_merged.onnx` (`input_ids`, `encoder_hidden_states`, `past_key_values.*`,
`use_cache_branch` to `logits`, `present.*`). The first step computes the keys and values of cross-attention once; later steps
return empty ones in their place, and the caller keeps those it has.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.backends.onnx_runtime.layout import cache_names
from sottovoce.backends.source import Source
from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.errors import ExportError
from sottovoce.models.whisper import FRAMES_PER_POSITION
from sottovoce.models.whisper_encoder import encode_window

OPSET = 21


ATTENTION = "sottovoce_onnx"


EXAMPLE_BATCH, EXAMPLE_TOKENS, EXAMPLE_PAST, EXAMPLE_FRAMES = 2, 3, 5, 7  # sizes that the exporter sees; none is kept


class EncoderGraph(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.encoder = network.model.encoder

    def forward(self, features: Tensor) -> Tensor:
        states: Tensor = self.encoder(features).last_hidden_state
        return states


class WindowedEncoderGraph(nn.Module):
    """Whisper's encoder on any part of its window: as many rows of the position table as there are frames for."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.encoder = network.model.encoder

    def forward(self, features: Tensor) -> Tensor:
        return encode_window(self.encoder, features)


class FirstStep(nn.Module):
    """The prompt: no cache yet."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.decoder, self.head = network.model.decoder, network.proj_out
        self.layers = _decoder_layers(network)

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache, EncoderDecoderCache

        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        states = self.decoder(
            input_ids=input_ids, encoder_hidden_states=encoder_hidden_states, past_key_values=cache, use_cache=True
        ).last_hidden_state
        logits = self.head(states)
        present: list[Tensor] = []
        for i in range(self.layers):
            for part in (cache.self_attention_cache, cache.cross_attention_cache):
                present += [part.layers[i].keys, part.layers[i].values]
        return (logits, *present)


class LaterStep(nn.Module):
    """What follows: the cache holds keys and values of the tokens so far, and those of the audio."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.decoder, self.head = network.model.decoder, network.proj_out
        self.layers = _decoder_layers(network)

    def forward(self, input_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        from transformers import DynamicCache, EncoderDecoderCache

        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for i in range(self.layers):
            own_key, own_value, cross_key, cross_value = past[4 * i : 4 * i + 4]
            cache.self_attention_cache.update(own_key, own_value, i)
            cache.cross_attention_cache.update(cross_key, cross_value, i)
            cache.is_updated[i] = True
        # With all keys and values of the audio at hand, the states are only a sign that there is cross-attention.
        states = self.decoder(input_ids=input_ids, encoder_hidden_states=past[2], past_key_values=cache, use_cache=True).last_hidden_state
        logits = self.head(states)
        present: list[Tensor] = []
        for i in range(self.layers):
            layer = cache.self_attention_cache.layers[i]
            empty = torch.zeros(0, past[4 * i + 2].shape[1], 1, past[4 * i + 2].shape[3])
            present += [layer.keys, layer.values, empty, empty.clone()]
        return (logits, *present)


def _decoder_layers(network: Any) -> int:
    return len(network.model.decoder.layers)


_Example = tuple[tuple[Any, ...], list[str], list[str], Any]


def encoder_example(source: Source) -> _Example:
    """Arguments, names of inputs and outputs, and which of their sizes are free."""
    model = source.model
    rng = np.random.default_rng(0)
    recordings = [rng.standard_normal(int(model.max_duration_s * SAMPLE_RATE) // 2).astype(np.float32) for _ in range(EXAMPLE_BATCH)]
    ((name, features),) = ((k, v) for k, v in model.features(recordings).items() if v.is_floating_point())
    batch = torch.export.Dim("batch_size")
    free: dict[int, Any] = {0: batch}
    if model.window_positions is None:
        free[1] = torch.export.Dim("num_samples", min=1024)
    else:
        free[2] = FRAMES_PER_POSITION * torch.export.Dim("encoder_length", min=2, max=model.window_positions)
    return (features,), [name], ["last_hidden_state"], (free,)


def first_example(source: Source) -> _Example:
    network = source.model.network
    width, frames = network.config.hidden_size, EXAMPLE_FRAMES
    ids = torch.full((EXAMPLE_BATCH, EXAMPLE_TOKENS), 1)
    states = torch.randn(EXAMPLE_BATCH, frames, width)
    layers = _decoder_layers(network)
    batch, tokens, length = (
        torch.export.Dim("batch_size"),
        torch.export.Dim("sequence_length"),
        torch.export.Dim("encoder_length"),
    )
    return (
        (ids, states),
        ["input_ids", "encoder_hidden_states"],
        ["logits", *cache_names(layers, "present")],
        ({0: batch, 1: tokens}, {0: batch, 1: length}),
    )


def later_example(source: Source) -> _Example:
    network = source.model.network
    layers = _decoder_layers(network)
    attention = network.model.decoder.layers[0].self_attn
    size = attention.head_dim
    heads = getattr(network.config, "decoder_num_key_value_heads", None) or network.config.decoder_attention_heads
    ids = torch.full((EXAMPLE_BATCH, EXAMPLE_TOKENS), 1)
    past, free = [], []
    batch, tokens = torch.export.Dim("batch_size"), torch.export.Dim("sequence_length")
    before, length = torch.export.Dim("past_length"), torch.export.Dim("encoder_length")
    for _ in range(layers):
        for steps, dim in ((EXAMPLE_PAST, before), (EXAMPLE_FRAMES, length)):
            past += [torch.randn(EXAMPLE_BATCH, heads, steps, size) for _ in range(2)]
            free += [{0: batch, 2: dim}] * 2
    names = cache_names(layers, "past_key_values")
    return (
        (ids, past),
        ["input_ids", *names],
        ["logits", *cache_names(layers, "present")],
        ({0: batch, 1: tokens}, free),
    )


@contextlib.contextmanager
def exporting(network: Any) -> Iterator[None]:
    """Attention in operators that ONNX Runtime is fast at; the exporter's chatter held back."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    before = network.config._attn_implementation
    network.config._attn_implementation = ATTENTION
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        network.config._attn_implementation = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _no_mask(*_: Any, **__: Any) -> None:
    """Causality is in the attention itself; nothing is padded."""


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """`softmax(Q K^T scaling) V` of `[B, heads, T, size]`; causal for the decoder's own tokens."""
    del attention_mask
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if getattr(module, "is_causal", False):
        scores = (query * scaling) @ key.transpose(2, 3)
        steps, total = query.shape[2], key.shape[2]
        at = torch.arange(steps).unsqueeze(1) + (total - steps)
        scores = scores.masked_fill(torch.arange(total).unsqueeze(0) > at, float("-inf"))
        return (torch.softmax(scores, -1) @ value).transpose(1, 2).contiguous(), None
    batch, heads, steps, size = query.shape
    flat = query.transpose(1, 2).reshape(batch, steps, heads * size)
    return multi_head_attention(flat, key, value, heads, scaling).reshape(batch, steps, heads, size), None


def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, scaling: float) -> Tensor:
    """Return attention to all of `key` and `value`, `[B, T, d]` each or `[B, heads, T, size]`, as one operator; `query` `[B, T, d]`."""
    result: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (query, key, value),
        {"num_heads": heads, "scale": float(scaling)},
        dtype=query.dtype,
        shape=tuple(query.shape),
        version=1,
    )
    return result


def export_graph(module: nn.Module, arguments: tuple[Any, ...], inputs: list[str], outputs: list[str], free: Any) -> Any:
    program = torch.onnx.export(
        module.eval(),
        arguments,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=free,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        optimize=True,
        verbose=False,
    )
    if program is None:
        raise ExportError("torch.onnx.export gave nothing back")
    return program.model_proto


def merge_decoders(onnx: Any, first: Any, later: Any) -> Any:
    """One graph: `use_cache_branch` chooses between the two, which share all weights."""
    helper, prefixes = onnx.helper, ("first", "later")
    weights, branches = dict[str, Any](), []
    for graph, prefix in zip((first.graph, later.graph), prefixes, strict=True):
        outer = {value.name for value in graph.input}
        renamed: dict[str, str] = {}
        returned, constants = {value.name for value in graph.output}, []
        for tensor in graph.initializer:
            if tensor.name in returned:  # a branch may not return what lies outside of it
                constants.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
                continue
            known = next((n for n, w in weights.items() if n.rpartition("@")[0] == tensor.name and _same(w, tensor)), None)
            renamed[tensor.name] = known or f"{tensor.name}@{len(weights)}"
            if known is None:
                copy = onnx.TensorProto()
                copy.CopyFrom(tensor)
                copy.name = renamed[tensor.name]
                weights[copy.name] = copy
        nodes = [*constants, *graph.node]
        for node in nodes:
            for fields in (node.input, node.output):
                for i, name in enumerate(fields):
                    if name and name not in outer:
                        fields[i] = renamed.setdefault(name, f"{prefix}/{name}")
            node.name = f"{prefix}/{node.name}"
        results = []
        for value in graph.output:
            result = onnx.ValueInfoProto()
            result.CopyFrom(value)
            result.name = renamed[value.name]
            results.append(result)
        branches.append(helper.make_graph(nodes, prefix, [], results))
    names = [value.name for value in first.graph.output]
    choose = helper.make_node("If", ["use_cache_branch"], names, then_branch=branches[1], else_branch=branches[0])
    ids, states = first.graph.input
    flag = helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    graph = helper.make_graph(
        [choose],
        "decoder",
        [ids, states, *list(later.graph.input)[1:], flag],
        [_loosened(onnx, value) for value in first.graph.output],
        list(weights.values()),
    )
    merged = helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version)
    merged.producer_name = "sottovoce"
    return merged


def _same(one: Any, other: Any) -> bool:
    return bool(one.data_type == other.data_type and list(one.dims) == list(other.dims) and one.raw_data == other.raw_data)


def _loosened(onnx: Any, value: Any) -> Any:
    """The same output with every size but the rank open, since the two branches differ in them."""
    kind = value.type.tensor_type
    return onnx.helper.make_tensor_value_info(value.name, kind.elem_type, [f"{value.name}_{i}" for i in range(len(kind.shape.dim))])
