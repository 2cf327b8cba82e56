"""Moonshine in GGUF, as transcribe.cpp reads it (its `src/arch/moonshine/weights.cpp`)."""

from typing import Any

from sottovoce.backends.gguf_common import BYTE, merges, require_moonshine
from sottovoce.backends.source import Source
from sottovoce.backends.transcribe_cpp import NAME
from sottovoce.backends.transcribe_cpp.layout import (
    TOKEN_BYTE,
    TOKEN_CONTROL,
    TOKEN_NORMAL,
    TOKEN_UNKNOWN,
    Layout,
    parameter_names,
    tokens_by_id,
)
from sottovoce.data.audio import SAMPLE_RATE

ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out"}
TOP = {
    "model.encoder.conv1": "enc.conv.0",
    "model.encoder.conv2": "enc.conv.1",
    "model.encoder.conv3": "enc.conv.2",
    "model.encoder.groupnorm": "enc.conv.norm",
    "model.encoder.layer_norm": "enc.final_norm",
    "model.decoder.embed_tokens": "dec.token_embd",
    "model.decoder.norm": "dec.final_norm",
}
ENCODER = {
    "input_layernorm": "norm_attn",
    "post_attention_layernorm": "norm_ffn",
    "mlp.fc1": "ffn.fc1",
    "mlp.fc2": "ffn.fc2",
    **{f"self_attn.{old}": f"attn.{new}" for old, new in ATTENTION.items()},
}
DECODER = {
    "input_layernorm": "norm_self",
    "post_attention_layernorm": "norm_cross",
    "final_layernorm": "norm_ffn",
    "mlp.fc1": "ffn.fc1",
    "mlp.fc2": "ffn.fc2",
    **{f"self_attn.{old}": f"self_attn.{new}" for old, new in ATTENTION.items()},
    **{f"encoder_attn.{old}": f"cross_attn.{new}" for old, new in ATTENTION.items()},
}


def _type(piece: str, special: bool) -> int:
    if piece == "<unk>":
        return TOKEN_UNKNOWN
    if special:
        return TOKEN_CONTROL
    return TOKEN_BYTE if BYTE.fullmatch(piece) else TOKEN_NORMAL


def _settings(source: Source, writer: Any) -> None:
    config, generation = source.config, source.model.network.generation_config
    require_moonshine(source, NAME)
    writer.add_array("general.languages", ["en"])
    for capability in ("lang_detect", "translate", "timestamps"):
        writer.add_bool(f"stt.capability.{capability}", False)
    pieces, types = tokens_by_id(source, _type)
    writer.add_string("tokenizer.ggml.model", "bpe")  # 0.4.1 refuses "llama"
    writer.add_string("tokenizer.ggml.pre", "default")
    writer.add_array("tokenizer.ggml.tokens", pieces)
    writer.add_array("tokenizer.ggml.token_type", types)
    if pairs := merges(source):
        writer.add_array("tokenizer.ggml.merges", pairs)
    writer.add_bool("tokenizer.ggml.byte_fallback", True)
    ids = {piece: i for i, piece in enumerate(pieces)}
    for key, piece in (("unknown", "<unk>"), ("bos", "<s>"), ("eos", "</s>")):
        if piece in ids:
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", ids[piece])
    end, start = source.end_token("transcribe.cpp"), config.decoder_start_token_id
    padding = end if generation.pad_token_id is None else generation.pad_token_id
    writer.add_uint32("tokenizer.ggml.padding_token_id", padding)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    for half in ("encoder", "decoder"):
        numbers = {
            "n_layers": getattr(config, f"{half}_num_hidden_layers"),
            "d_model": config.hidden_size,
            "n_heads": getattr(config, f"{half}_num_attention_heads"),
            "n_kv_heads": getattr(config, f"{half}_num_key_value_heads"),
            "ffn_dim": config.intermediate_size,
        }
        for key, value in numbers.items():
            writer.add_uint32(f"stt.moonshine.{half}.{key}", value)
        writer.add_string(f"stt.moonshine.{half}.activation", getattr(config, f"{half}_hidden_act"))
    writer.add_uint32("stt.moonshine.decoder.vocab_size", config.vocab_size)
    writer.add_uint32("stt.moonshine.decoder.max_position_embeddings", config.max_position_embeddings)
    writer.add_bool("stt.moonshine.decoder.tie_word_embeddings", True)
    rope = config.rope_parameters
    writer.add_float32("stt.moonshine.partial_rotary_factor", rope.get("partial_rotary_factor", 1.0))
    writer.add_float32("stt.moonshine.rope_theta", rope["rope_theta"])
    writer.add_bool("stt.moonshine.attention_bias", False)
    writer.add_uint32("stt.moonshine.pad_head_dim_to_multiple_of", config.pad_head_dim_to_multiple_of or 0)
    encoder = source.model.network.model.encoder
    convolutions = (encoder.conv1, encoder.conv2, encoder.conv3)
    writer.add_array("stt.moonshine.conv_stem.channels", [c.out_channels for c in convolutions])
    writer.add_array("stt.moonshine.conv_stem.kernel_sizes", [c.kernel_size[0] for c in convolutions])
    writer.add_array("stt.moonshine.conv_stem.strides", [c.stride[0] for c in convolutions])
    writer.add_uint32("stt.moonshine.conv_stem.groupnorm_num_groups", encoder.groupnorm.num_groups)
    writer.add_float32("stt.moonshine.conv_stem.groupnorm_eps", encoder.groupnorm.eps)
    for key, value in {"decoder_start": start, "bos": config.bos_token_id, "eos": end, "pad": padding}.items():
        writer.add_uint32(f"stt.moonshine.{key}_token_id", value)
    writer.add_string("stt.frontend.type", "raw")
    writer.add_uint32("stt.frontend.sample_rate", SAMPLE_RATE)
    writer.add_uint32("stt.frontend.num_mels", 1)


MOONSHINE = Layout(
    architecture="moonshine",
    names=lambda source: parameter_names(source, TOP, ENCODER, DECODER),
    float32=lambda _: False,
    settings=_settings,
    inputs=lambda _: {},
)
