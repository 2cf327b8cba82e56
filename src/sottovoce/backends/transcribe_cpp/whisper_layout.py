"""Whisper in GGUF, as transcribe.cpp reads it (its `src/arch/whisper/weights.cpp`)."""

from typing import Any

import numpy as np

from sottovoce.backends.gguf_common import merges, periodic_hann
from sottovoce.backends.source import Source
from sottovoce.backends.transcribe_cpp.layout import (
    TOKEN_CONTROL,
    TOKEN_NORMAL,
    Layout,
    parameter_names,
    tokens_by_id,
)
from sottovoce.errors import ExportError
from sottovoce.models.languages import DEFAULT_LANGUAGE

ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}
TOP = {
    "model.encoder.conv1": "enc.conv.0",
    "model.encoder.conv2": "enc.conv.1",
    "model.encoder.embed_positions": "enc.pos_emb",
    "model.encoder.layer_norm": "enc.final_norm",
    "model.decoder.embed_tokens": "dec.token_embd",
    "model.decoder.embed_positions": "dec.pos_emb",
    "model.decoder.layer_norm": "dec.final_norm",
}
ENCODER = {
    "self_attn_layer_norm": "norm_attn",
    "final_layer_norm": "norm_ffn",
    "fc1": "ffn.fc1",
    "fc2": "ffn.fc2",
    **{f"self_attn.{old}": f"attn.{new}" for old, new in ATTENTION.items()},
}
DECODER = {
    "self_attn_layer_norm": "norm_self",
    "encoder_attn_layer_norm": "norm_cross",
    "final_layer_norm": "norm_ffn",
    "fc1": "ffn.fc1",
    "fc2": "ffn.fc2",
    **{f"self_attn.{old}": f"self_attn.{new}" for old, new in ATTENTION.items()},
    **{f"encoder_attn.{old}": f"cross_attn.{new}" for old, new in ATTENTION.items()},
}


def _settings(source: Source, writer: Any) -> None:
    config, generation = source.config, source.model.network.generation_config
    extractor = source.model.processor.feature_extractor
    if config.activation_function != "gelu" or config.scale_embedding or not source.model.tied:
        raise ExportError("transcribe.cpp runs Whisper only with GELU, unscaled embeddings and a head tied to them")
    source.end_token("transcribe.cpp")  # it ends at <|endoftext|> alone
    languages = [code[2:-2] for code in getattr(generation, "lang_to_id", None) or {}] or [DEFAULT_LANGUAGE]
    writer.add_array("general.languages", languages)
    writer.add_bool("stt.capability.lang_detect", len(languages) > 1)
    writer.add_bool("stt.capability.translate", len(languages) > 1)
    writer.add_bool("stt.capability.timestamps", generation.no_timestamps_token_id + 1 < config.vocab_size)
    pieces, types = tokens_by_id(source, lambda _, special: TOKEN_CONTROL if special else TOKEN_NORMAL)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "gpt2")
    writer.add_array("tokenizer.ggml.tokens", pieces)
    writer.add_array("tokenizer.ggml.token_type", types)
    if pairs := merges(source):
        writer.add_array("tokenizer.ggml.merges", pairs)
    ids = {piece: i for i, piece in enumerate(pieces)}
    for kind in ("bos", "eos", "padding"):
        writer.add_uint32(f"tokenizer.ggml.{kind}_token_id", ids["<|endoftext|>"])
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    for half in ("encoder", "decoder"):
        numbers = {
            "n_layers": getattr(config, f"{half}_layers"),
            "d_model": config.d_model,
            "n_heads": getattr(config, f"{half}_attention_heads"),
            "ffn_dim": getattr(config, f"{half}_ffn_dim"),
        }
        for key, value in numbers.items():
            writer.add_uint32(f"stt.whisper.{half}.{key}", value)
        writer.add_string(f"stt.whisper.{half}.activation", config.activation_function)
    writer.add_uint32("stt.whisper.encoder.num_mel_bins", config.num_mel_bins)
    writer.add_uint32("stt.whisper.encoder.max_source_positions", config.max_source_positions)
    writer.add_uint32("stt.whisper.decoder.max_target_positions", config.max_target_positions)
    writer.add_uint32("stt.whisper.decoder.vocab_size", config.vocab_size)
    writer.add_bool("stt.whisper.decoder.tie_word_embeddings", True)
    writer.add_bool("stt.whisper.decoder.scale_embedding", False)
    writer.add_uint32("stt.whisper.decoder_start_token_id", generation.decoder_start_token_id)
    writer.add_uint32("stt.whisper.no_timestamps_token_id", generation.no_timestamps_token_id)
    special = {
        "sot": "<|startoftranscript|>",
        "transcribe": "<|transcribe|>",
        "translate": "<|translate|>",
        "prev_sot": "<|startofprev|>",
    }
    for key, piece in special.items():
        if piece in ids:
            writer.add_uint32(f"stt.whisper.{key}_token_id", ids[piece])
    for key in ("suppress_tokens", "begin_suppress_tokens"):
        if suppressed := [token for token in getattr(generation, key, None) or [] if token >= 0]:
            writer.add_array(f"stt.whisper.{key}", suppressed)
    writer.add_string("stt.frontend.type", "mel")
    frames = {
        "num_mels": extractor.feature_size,
        "sample_rate": extractor.sampling_rate,
        "n_fft": extractor.n_fft,
        "win_length": extractor.n_fft,
        "hop_length": extractor.hop_length,
        "chunk_length": extractor.chunk_length,
        "n_samples": extractor.n_samples,
        "nb_max_frames": extractor.nb_max_frames,
    }
    for key, value in frames.items():
        writer.add_uint32(f"stt.frontend.{key}", value)
    for key, text in {
        "window": "hann_periodic",
        "normalize": "whisper_logmel",
        "pad_mode": "reflect",
        "mel_norm": "slaney",
    }.items():
        writer.add_string(f"stt.frontend.{key}", text)
    for key, number in {"dither": 0.0, "pre_emphasis": 0.0, "f_min": 0.0, "f_max": extractor.sampling_rate / 2}.items():
        writer.add_float32(f"stt.frontend.{key}", number)
    writer.add_bool("stt.frontend.center", True)


def _inputs(source: Source) -> dict[str, np.ndarray]:
    """Mel filters and the window of a spectrum."""
    extractor = source.model.processor.feature_extractor
    return {
        "frontend.mel_filterbank": np.asarray(extractor.mel_filters, np.float32).T,
        "frontend.window": periodic_hann(extractor.n_fft),
    }


WHISPER = Layout(
    architecture="whisper",
    names=lambda source: parameter_names(source, TOP, ENCODER, DECODER),
    float32=lambda name: "embed_positions" in name,
    settings=_settings,
    inputs=_inputs,
)
