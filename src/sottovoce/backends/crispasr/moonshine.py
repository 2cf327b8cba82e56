"""Moonshine as CrispASR reads it (its `models/convert-moonshine-to-gguf.py`, `src/moonshine.cpp`)."""

from typing import Any

from sottovoce.backends.crispasr.family import Family
from sottovoce.backends.crispasr.layout import NAME, TOKENIZER
from sottovoce.backends.gguf_common import BYTE, pieces_by_id, require_moonshine
from sottovoce.backends.source import Source
from sottovoce.errors import ExportError

ATTENTION = {f"{name}_proj": name for name in "qkvo"}
TOP = {
    "encoder.layer_norm": "encoder.output_norm",
    "decoder.norm": "decoder.output_norm",
}
ENCODER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.fc1": "ffn.fc1",
    "mlp.fc2": "ffn.fc2",
    **{f"self_attn.{old}": f"attn.{new}" for old, new in ATTENTION.items()},
}
DECODER = {
    **ENCODER,
    "post_attention_layernorm": "cross_attn_norm",
    "final_layernorm": "ffn_norm",
    **{f"encoder_attn.{old}": f"cross_attn.{new}" for old, new in ATTENTION.items()},
}
LONGEST_TOKEN = 128 * 128 + 127  # bytes that the file of tokens can tell


def moonshine_name(parameter: str) -> str:
    """Return the name of a parameter: `model.encoder.layers.0.self_attn.q_proj.weight` is `encoder.layers.0.attn.q.weight` there."""
    module, _, kind = parameter.removeprefix("model.").rpartition(".")
    half, _, rest = module.partition(".")
    if not rest.startswith("layers."):
        return f"{TOP.get(module, module)}.{kind}"
    _, number, inner = rest.split(".", 2)
    return f"{half}.layers.{number}.{(ENCODER if half == 'encoder' else DECODER)[inner]}.{kind}"


def token_record(piece: str) -> bytes:
    """Return a token in `tokenizer.bin`: its length in one byte or, from 128 on, two; its bytes.

    A token of byte fallback ("<0x0A>") becomes that byte: CrispASR leaves out what stands between angle brackets.
    """
    data = bytes([int(piece[3:5], 16)]) if BYTE.fullmatch(piece) else piece.encode("utf-8", errors="replace")
    if len(data) > LONGEST_TOKEN:
        raise ExportError(f"a token takes {len(data)} bytes, and {NAME} holds {LONGEST_TOKEN} at most")
    return (bytes([len(data)]) if len(data) < 128 else bytes([len(data) % 128 + 128, len(data) // 128])) + data


def _require_shape(source: Source) -> None:
    require_moonshine(source, NAME)
    config = source.config
    heads = {config.encoder_num_attention_heads, config.decoder_num_attention_heads}
    shared = {config.encoder_num_key_value_heads, config.decoder_num_key_value_heads}
    if heads != shared or len(heads) > 1:
        raise ExportError(f"{NAME} runs Moonshine only with one number of heads everywhere; this model has {sorted(heads | shared)}")


def _write_settings(source: Source, writer: Any) -> None:
    config, encoder = source.config, source.model.network.model.encoder
    for half in ("encoder", "decoder"):
        numbers = {
            "embedding_length": config.hidden_size,
            "block_count": getattr(config, f"{half}_num_hidden_layers"),
            "attention.head_count": getattr(config, f"{half}_num_attention_heads"),
            "attention.head_count_kv": getattr(config, f"{half}_num_key_value_heads"),
            "feed_forward_length": config.intermediate_size,
        }
        for key, value in numbers.items():
            writer.add_uint32(f"moonshine.{half}.{key}", value)
        writer.add_float32(f"moonshine.{half}.partial_rotary_factor", config.rope_parameters.get("partial_rotary_factor", 1.0))
    writer.add_uint32("moonshine.vocab_size", config.vocab_size)
    writer.add_uint32("moonshine.bos_token_id", config.decoder_start_token_id)
    writer.add_uint32("moonshine.eos_token_id", source.end_token(NAME))
    writer.add_float32("moonshine.attention.layer_norm_epsilon", encoder.layer_norm.eps)
    writer.add_float32("moonshine.rope.freq_base", config.rope_parameters["rope_theta"])
    for number, convolution in enumerate((encoder.conv1, encoder.conv2, encoder.conv3), 1):
        writer.add_uint32(f"moonshine.encoder.conv{number}.kernel_size", convolution.kernel_size[0])
        writer.add_uint32(f"moonshine.encoder.conv{number}.stride", convolution.stride[0])


def _tokens(source: Source) -> dict[str, bytes]:
    return {TOKENIZER: b"".join(token_record(piece) for piece, _ in pieces_by_id(source))}


MOONSHINE = Family(
    architecture="moonshine",
    require=_require_shape,
    tensors=lambda source: [(moonshine_name(parameter), parameter) for parameter in source.floats()],
    settings=_write_settings,
    inputs=lambda _source: {},
    beside=_tokens,
)
