"""Names of files and tensors in an ONNX folder."""

SHORT_CONTEXT = "sottovoce_short_context"  # in config.json: the contexts that the model was tuned for
DATA = "_data"  # after the name of a graph: the file beside it, for weights that one file cannot hold
BESIDE = (  # settings and tokenizer, as this and earlier versions of transformers name them
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "normalizer.json", "chat_template.jinja",
)  # fmt: skip
ENCODER, DECODER = "onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"


def cache_names(layers: int, prefix: str) -> list[str]:
    """`past_key_values.0.decoder.key` and so on, in the order of the graph."""
    return [f"{prefix}.{i}.{half}.{what}" for i in range(layers) for half in ("decoder", "encoder") for what in ("key", "value")]
