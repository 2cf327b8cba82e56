"""What runtimes that bring OpenAI's own tokenizer or graph take for granted of a Whisper model."""

from dataclasses import dataclass

from sottovoce.backends.onnx_runtime import NAME as ONNX_RUNTIME
from sottovoce.backends.source import Source
from sottovoce.backends.transcribe_cpp import NAME as TRANSCRIBE_CPP
from sottovoce.errors import ExportError
from sottovoce.models.languages import DEFAULT_LANGUAGE, world_languages
from sottovoce.models.whisper_settings import ENGLISH_END

END_OF_TEXT = "<|endoftext|>"
# These runtimes know the special tokens by their places in OpenAI's vocabularies: English alone, 99 and 100 languages. One token more is
# one language more to them, and moves all that follows.
ENGLISH_VOCABULARY, SMALLEST_MULTILINGUAL, LARGEST_VOCABULARY = 51864, 51865, 51866
ENGLISH_NO_TIMESTAMPS = 50362
ENGLISH_MODELS_LANGUAGES = 99  # models of English alone leave room for these
ANY_MODEL = f"{TRANSCRIBE_CPP} or {ONNX_RUNTIME}"  # which take nothing of the kind for granted
FEED_FORWARD = 4  # width of feed-forward layers, in widths of the model


def languages_of(tokens: int) -> tuple[str, ...]:
    """Return the codes of the languages that a vocabulary of OpenAI's with so many tokens has: English, or the first of the world's."""
    count = ENGLISH_MODELS_LANGUAGES + tokens - SMALLEST_MULTILINGUAL
    return (DEFAULT_LANGUAGE,) if tokens < SMALLEST_MULTILINGUAL else tuple(world_languages())[:count]


def require_openai_like(source: Source, runtime: str) -> None:
    """Raise `ExportError` if the model is not built like OpenAI's own, which `runtime` takes for granted."""
    if source.family != "whisper":
        raise ExportError(f"{runtime} runs Whisper only, not a {source.family!r} model; export it to {ANY_MODEL}")
    config = source.config
    size = config.vocab_size
    if size not in range(ENGLISH_VOCABULARY, LARGEST_VOCABULARY + 1) or not source.model.tied:
        added = f", {size - LARGEST_VOCABULARY} more than the largest of them" if size > LARGEST_VOCABULARY else ""
        raise ExportError(
            f"{runtime} wants OpenAI's vocabulary ({ENGLISH_VOCABULARY} to {LARGEST_VOCABULARY} tokens) with a tied head, since it finds "
            f"the special tokens by their places; this model has {size} tokens{added}; export it to {ANY_MODEL}"
        )
    settings = source.model.network.generation_config
    shift = 0 if size == ENGLISH_VOCABULARY else 1 + size - SMALLEST_MULTILINGUAL
    for title, found, wanted in (
        ("the end of a transcript", source.end_token(runtime), ENGLISH_END + min(shift, 1)),
        ("a transcript without timestamps", settings.no_timestamps_token_id, ENGLISH_NO_TIMESTAMPS + shift),
    ):
        if found != wanted:
            raise ExportError(
                f"{runtime} takes token {wanted} for {title} where a vocabulary has {size} tokens, and this model has token {found} for "
                f"it; export it to {ANY_MODEL}"
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


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids of OpenAI's special tokens, which stand in one row behind the words (openai/whisper, `whisper/tokenizer.py`)."""

    end: int
    languages: dict[str, int]  # by code
    multilingual: bool

    @property
    def start(self) -> int:
        """`<|startoftranscript|>`."""
        return self.end + 1

    @property
    def translate(self) -> int:
        """`<|translate|>`, behind the languages."""
        return self.start + 1 + len(self.languages)

    @property
    def transcribe(self) -> int:
        """`<|transcribe|>`."""
        return self.translate + 1

    @property
    def language_model(self) -> int:
        """`<|startoflm|>`."""
        return self.translate + 2

    @property
    def previous(self) -> int:
        """`<|startofprev|>`."""
        return self.translate + 3

    @property
    def no_speech(self) -> int:
        """`<|nospeech|>`."""
        return self.translate + 4

    @property
    def no_timestamps(self) -> int:
        """`<|notimestamps|>`."""
        return self.translate + 5


def special_tokens(source: Source) -> SpecialTokens:
    """Return the special tokens. Raises `ExportError` if the model's settings have other ids than OpenAI's vocabulary."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    settings = source.model.network.generation_config
    multilingual = bool(settings.is_multilingual)
    end = source.model.end_tokens[0]
    if multilingual:
        known = {name[2:-2]: number for name, number in settings.lang_to_id.items()}
        languages = dict(sorted(known.items(), key=lambda item: item[1]))
    else:
        languages = {code: end + 2 + place for place, code in enumerate(list(LANGUAGES)[:ENGLISH_MODELS_LANGUAGES])}
    found = SpecialTokens(end=end, languages=languages, multilingual=multilingual)
    ids = (found.start, found.no_timestamps, *languages.values())
    wanted = (settings.decoder_start_token_id, settings.no_timestamps_token_id, *range(end + 2, end + 2 + len(languages)))
    if ids != wanted or (multilingual and settings.task_to_id.get("transcribe") != found.transcribe):
        raise ExportError(
            "the special tokens of this model are not in the order of OpenAI's vocabulary, which this runtime takes for granted"
        )
    return found
