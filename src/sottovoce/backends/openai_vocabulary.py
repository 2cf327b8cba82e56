"""What runtimes that bring OpenAI's own tokenizer or graph take for granted of a Whisper model."""

from sottovoce.backends.source import Source
from sottovoce.errors import ExportError

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 51864  # these runtimes know the special tokens by their places in OpenAI's vocabularies
FEED_FORWARD = 4  # width of feed-forward layers, in widths of the model


def require_openai_like(source: Source, runtime: str) -> None:
    """Raise `ExportError` if the model is not built like OpenAI's own, which `runtime` takes for granted."""
    if source.family != "whisper":
        raise ExportError(f"{runtime} runs Whisper only, not a {source.family!r} model; export it to gguf or onnx")
    config = source.config
    if config.vocab_size < SMALLEST_VOCABULARY or not source.model.tied:
        raise ExportError(
            f"{runtime} wants OpenAI's vocabulary ({SMALLEST_VOCABULARY} tokens or more) with a tied head; this model has "
            f"{config.vocab_size} tokens"
        )
    if {config.encoder_ffn_dim, config.decoder_ffn_dim} != {FEED_FORWARD * config.d_model}:
        raise ExportError(
            f"{runtime} wants feed-forward layers of {FEED_FORWARD} times the model's width ({FEED_FORWARD * config.d_model}); these are "
            f"of {config.encoder_ffn_dim} and {config.decoder_ffn_dim}"
        )


def token_bytes(source: Source) -> list[bytes]:
    """Return the bytes of every token before the end token; the runtimes themselves name what follows.

    Raises `ExportError` if ids are missing before the end token.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    content = source.tokenizer()
    vocabulary = content["model"]["vocab"]
    end = vocabulary.get(END_OF_TEXT) or next(t["id"] for t in content["added_tokens"] if t["content"] == END_OF_TEXT)
    by_id = {index: piece for piece, index in vocabulary.items() if index < end}
    if by_id.keys() != set(range(end)):
        raise ExportError(f"the vocabulary has gaps before {END_OF_TEXT}, which this runtime cannot hold")
    to_byte = {character: byte for byte, character in bytes_to_unicode().items()}
    return [bytes(to_byte[character] for character in by_id[i]) for i in range(end)]
