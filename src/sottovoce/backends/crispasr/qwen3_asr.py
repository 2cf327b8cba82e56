"""Qwen3-ASR as CrispASR reads it (its `models/convert-qwen3-asr-to-gguf.py`, `src/qwen3_asr.cpp`, `crisp_audio/src/audio_tower.cpp`)."""

import re
from typing import Any

import numpy as np
from torch import nn

from sottovoce.backends.crispasr.family import Family
from sottovoce.backends.crispasr.layout import LIMIT, NAME, QWEN
from sottovoce.backends.gguf_common import merges, periodic_hann, pieces_by_id
from sottovoce.backends.source import Source
from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.errors import ExportError
from sottovoce.models.qwen3_asr import AUDIO, TEXT

HOP, SPECTRUM = 160, 400  # samples from one spectrum to the next, and in each
HEAD_EPS = 1e-5  # added to variances in the audio tower, a constant of CrispASR's
UNUSED = "[PAD{}]"  # what its converter calls a row without a token
EMBEDDING = f"{TEXT}.embed_tokens.weight"
TOP = {
    **{f"{AUDIO}.conv2d{i}": f"audio.conv.{i}" for i in (1, 2, 3)},
    f"{AUDIO}.conv_out": "audio.conv_out",
    f"{AUDIO}.ln_post": "audio.ln_post",
    "model.multi_modal_projector.linear_1": "audio.proj1",
    "model.multi_modal_projector.linear_2": "audio.proj2",
    f"{TEXT}.embed_tokens": "token_embd",
    f"{TEXT}.norm": "output_norm",
    "lm_head": "output",
}
TOWER = {
    "self_attn_layer_norm": "attn_norm",
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in ("q", "k", "v", "out")},
    "final_layer_norm": "ffn_norm",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
}
LANGUAGE_MODEL = {
    "input_layernorm": "attn_norm",
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}
# Written over the vocabulary by CrispASR, whatever the file has at these places.
FIXED_TOKENS = {
    151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>", 151646: "<|object_ref_start|>", 151647: "<|object_ref_end|>",
    151648: "<|box_start|>", 151649: "<|box_end|>", 151650: "<|quad_start|>", 151651: "<|quad_end|>", 151652: "<|vision_start|>",
    151653: "<|vision_end|>", 151654: "<|vision_pad|>", 151655: "<|image_pad|>", 151656: "<|video_pad|>", 151669: "<|audio_start|>",
    151670: "<|audio_end|>", 151676: "<|audio_pad|>",
}  # fmt: skip
END = "<|im_end|>"
BEFORE = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|>"  # what CrispASR asks, around the audio
AFTER = "<|audio_end|><|im_end|>\n<|im_start|>assistant\nlanguage English<asr_text>"


def qwen_name(parameter: str) -> str:
    """Return the name of a parameter: `model.audio_tower.layers.0.fc1.weight` is `audio.blk.0.ffn_up.weight` there."""
    module, _, kind = parameter.rpartition(".")
    found = re.fullmatch(rf"({re.escape(AUDIO)}|{re.escape(TEXT)})\.layers\.(\d+)\.(.+)", module)
    if found is None:
        return f"{TOP[module]}.{kind}"
    half, number, inner = found.groups()
    return f"audio.blk.{number}.{TOWER[inner]}.{kind}" if half == AUDIO else f"blk.{number}.{LANGUAGE_MODEL[inner]}.{kind}"


def _tensors(source: Source) -> list[tuple[str, str]]:
    named = [(qwen_name(parameter), parameter) for parameter in source.floats()]
    # CrispASR wants the head as a tensor of its own, also where it is the token embedding.
    return [*named, ("output.weight", EMBEDDING)] if source.model.tied else named


def _pieces(source: Source) -> list[str]:
    """Return the tokens by id, for all rows of the embedding."""
    return [piece for piece, _ in pieces_by_id(source, UNUSED)]


def _require(source: Source) -> None:
    config = source.config
    audio, text = config.audio_config, config.text_config
    tower = source.model.network.get_submodule(AUDIO)
    built = {
        "activations of the audio tower": (audio.activation_function, "gelu"),
        "activations of the language model": (text.hidden_act, "silu"),
        "biases in its attention": (bool(text.attention_bias), False),
        "kind of rotary positions": (text.rope_parameters.get("rope_type", "default"), "default"),
        "sliding windows": (bool(getattr(text, "use_sliding_window", False)), False),
        "small number in the tower's norms": ({m.eps for m in tower.modules() if isinstance(m, nn.LayerNorm)}, {HEAD_EPS}),
    }
    for what, (has, wanted) in built.items():
        if has != wanted:
            raise ExportError(f"{NAME} runs Qwen3-ASR only with {wanted!r} as the {what}, and this model has {has!r}; keep its folder")
    _require_front_end(source)
    _require_prompt(source)


def _require_front_end(source: Source) -> None:
    extractor = source.model.processor.feature_extractor
    has = (extractor.sampling_rate, extractor.hop_length, extractor.n_fft, extractor.dither)
    if has != (SAMPLE_RATE, HOP, SPECTRUM, 0.0):
        raise ExportError(
            f"{NAME} computes spectra at {SAMPLE_RATE} Hz, every {HOP} samples from {SPECTRUM}, without noise; this model wants {has}"
        )


def _require_prompt(source: Source) -> None:
    pieces = _pieces(source)
    for index, piece in FIXED_TOKENS.items():
        if index < len(pieces) and pieces[index] not in (piece, UNUSED.format(index)):
            raise ExportError(f"{NAME} takes token {index} for {piece!r}, and this model has {pieces[index]!r} there; keep its folder")
    ends = source.model.end_tokens
    if END not in pieces or pieces.index(END) not in ends:
        raise ExportError(f"{NAME} ends a transcript at {END!r}, and this model ends it at {list(ends)}; keep its folder")
    processor = source.model.processor
    (text,) = processor.apply_transcription_request(np.zeros(SAMPLE_RATE, np.float32), language="en", tokenize=False)
    if text != f"{BEFORE}{processor.audio_token}{AFTER}":
        raise ExportError(f"{NAME} asks with a prompt of its own, and this model's template gives {text!r}; keep its folder")


def _settings(source: Source, writer: Any) -> None:
    audio, text, pieces = source.config.audio_config, source.config.text_config, _pieces(source)
    spectrum = {
        "sample_rate": SAMPLE_RATE,
        "n_mels": audio.num_mel_bins,
        "n_fft": SPECTRUM,
        "win_length": SPECTRUM,
        "hop_length": HOP,
        "n_window": audio.n_window,
        "n_window_infer": audio.n_window_infer,
    }
    tower = {
        "n_layers": audio.encoder_layers,
        "d_model": audio.d_model,
        "n_heads": audio.encoder_attention_heads,
        "head_dim": audio.d_model // audio.encoder_attention_heads,
        "ff_dim": audio.encoder_ffn_dim,
        "conv_channels": audio.downsample_hidden_size,
        "proj_dim": audio.output_dim,
        "max_source_pos": audio.max_position_embeddings,
        "attn_window_mode": 1,  # attention within windows of `n_window_infer` frames, as `transformers` has it; 0: over everything
    }
    language_model = {
        "n_layers": text.num_hidden_layers,
        "d_model": text.hidden_size,
        "n_heads": text.num_attention_heads,
        "n_kv_heads": text.num_key_value_heads,
        "head_dim": text.head_dim,
        "ff_dim": text.intermediate_size,
        "vocab_size": text.vocab_size,
        "max_pos": text.max_position_embeddings,
    }
    tokens = {f"{name}_token_id": pieces.index(f"<|{name}|>") for name in ("audio_start", "audio_end", "audio_pad")}
    tokens |= {"eos_token_id": pieces.index(END), "pad_token_id": source.config.pad_token_id}
    # The spectrum twice: the loader of the audio tower looks for all of its keys under "audio", that of the language model does not.
    for part, numbers in (("", spectrum), ("audio.", spectrum | tower), ("llm.", language_model), ("", tokens)):
        for key, number in numbers.items():
            writer.add_uint32(f"{QWEN}.{part}{key}", number)
    writer.add_uint32(LIMIT, source.model.max_new_tokens(None))
    writer.add_float32(f"{QWEN}.llm.rope_theta", text.rope_parameters["rope_theta"])
    writer.add_float32(f"{QWEN}.llm.rms_norm_eps", text.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(pieces)
    if pairs := merges(source):
        writer.add_token_merges(pairs)


def _inputs(source: Source) -> dict[str, np.ndarray]:
    """Return the mel filters `[frequencies, bands]`, and the window of a spectrum."""
    return {"audio.mel_filters": source.model.processor.feature_extractor.mel_filters, "audio.mel_window": periodic_hann(SPECTRUM)}


QWEN3_ASR = Family(architecture=QWEN, require=_require, tensors=_tensors, settings=_settings, inputs=_inputs, beside=lambda _source: {})
