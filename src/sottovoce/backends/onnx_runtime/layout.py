"""Names of files and tensors in an ONNX folder."""

SHORT_CONTEXT = "sottovoce_short_context"  # in config.json: the contexts that the model was tuned for
ENCODER, DECODER = "onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"


def cache_names(layers: int, prefix: str) -> list[str]:
    """`past_key_values.0.decoder.key` and so on, in the order of the graph."""
    return [f"{prefix}.{i}.{half}.{what}" for i in range(layers) for half in ("decoder", "encoder") for what in ("key", "value")]
