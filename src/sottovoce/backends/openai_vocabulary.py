"""What runtimes that bring OpenAI's own tokenizer or graph take for granted of a Whisper model."""

from sottovoce.backends.source import Source
from sottovoce.errors import ExportError

END_OF_TEXT = "<|endoftext|>"
# These runtimes know the special tokens by their places in OpenAI's vocabularies: English alone, 99 and 100 languages. One token more is
# one language more to them, and moves all that follows.
ENGLISH_VOCABULARY, SMALLEST_MULTILINGUAL, LARGEST_VOCABULARY = 51864, 51865, 51866
ENGLISH_END, ENGLISH_NO_TIMESTAMPS = 50256, 50362
FEED_FORWARD = 4  # width of feed-forward layers, in widths of the model


def require_openai_like(source: Source, runtime: str) -> None:
    """Raise `ExportError` if the model is not built like OpenAI's own, which `runtime` takes for granted."""
    if source.family != "whisper":
        raise ExportError(f"{runtime} runs Whisper only, not a {source.family!r} model; export it to gguf or onnx")
    config = source.config
    size = config.vocab_size
    if size not in range(ENGLISH_VOCABULARY, LARGEST_VOCABULARY + 1) or not source.model.tied:
        added = f", {size - LARGEST_VOCABULARY} more than the largest of them" if size > LARGEST_VOCABULARY else ""
        raise ExportError(
            f"{runtime} wants OpenAI's vocabulary ({ENGLISH_VOCABULARY} to {LARGEST_VOCABULARY} tokens) with a tied head, since it finds "
            f"the special tokens by their places; this model has {size} tokens{added}; export it to transcribe.cpp or onnxruntime"
        )
    settings = source.model.network.generation_config
    shift = 0 if size == ENGLISH_VOCABULARY else 1 + size - SMALLEST_MULTILINGUAL
    for title, found, wanted in (
        ("the end of a transcript", settings.eos_token_id, ENGLISH_END + min(shift, 1)),
        ("a transcript without timestamps", settings.no_timestamps_token_id, ENGLISH_NO_TIMESTAMPS + shift),
    ):
        if found != wanted:
            raise ExportError(
                f"{runtime} takes token {wanted} for {title} where a vocabulary has {size} tokens, and this model has token {found} for "
                "it; export it to transcribe.cpp or onnxruntime"
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
