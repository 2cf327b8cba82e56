"""OpenAI's names of Whisper's tensors, which whisper.cpp, mlx-whisper and sherpa-onnx keep (openai/whisper, `whisper/model.py`)."""

from typing import Any

_TOP = {
    "conv1": "conv1",
    "conv2": "conv2",
    "embed_positions.weight": "positional_embedding",
    "embed_tokens.weight": "token_embedding.weight",
}
_LAST_NORM = {"encoder": "ln_post", "decoder": "ln"}
_BLOCK = {
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    **{
        f"{old_attention}.{old}": f"{new_attention}.{new}"
        for old_attention, new_attention in {"self_attn": "attn", "encoder_attn": "cross_attn"}.items()
        for old, new in {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}.items()
    },
}


def openai_name(parameter: str) -> str:
    """Return OpenAI's name: `model.encoder.layers.0.fc1.weight` is `encoder.blocks.0.mlp.0.weight` there."""
    _, half, rest = parameter.split(".", 2)
    if rest.startswith("layers."):
        _, number, inner = rest.split(".", 2)
        module, _, kind = inner.rpartition(".")
        return f"{half}.blocks.{number}.{_BLOCK[module]}.{kind}"
    if rest.startswith("layer_norm."):
        return f"{half}.{_LAST_NORM[half]}.{rest.removeprefix('layer_norm.')}"
    if rest in _TOP:
        return f"{half}.{_TOP[rest]}"
    return f"{half}.{rest}"


def openai_dimensions(config: Any) -> dict[str, int]:
    """Return OpenAI's `ModelDimensions` of a Whisper by their names there."""
    return {
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size,
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads,
        "n_text_layer": config.decoder_layers,
    }
