"""Whisper's generation settings, as far as the vocabulary tells them.

Models saved before 2023, and many fine-tunes, come without `generation_config.json`, or with one that lacks languages, tasks and the
token for "no timestamps". All of these are tokens of the vocabulary.
"""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from sottovoce.errors import ModelError
from sottovoce.models.languages import world_languages

START, END, NO_TIMESTAMPS = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
TASKS = ("transcribe", "translate")
ENGLISH_END = 50256  # of OpenAI's English-only vocabulary, which holds the tokens of all languages and was trained with none
# Tokens that are no text: OpenAI suppresses them at every step (whisper/decoding.py, `_get_suppress_tokens`).
CONTROL = (START, "<|transcribe|>", "<|translate|>", "<|startofprev|>", "<|startoflm|>", "<|nospeech|>", "<|nocaptions|>")
# Symbols that mark sounds, speakers and the like (whisper/tokenizer.py, `non_speech_tokens`).
SYMBOLS = (*'"#()*+/:;<=>@[\\]^_`{|}~「」『』', *"<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split())
MUSIC = tuple("♩♪♫♬♭♮♯")
MAX_INITIAL_TIMESTAMP = 50  # of 20 ms: a segment begins within the first second


def complete_generation_config(network: Any, tokenizer: Any, source: str) -> None:
    """Add to `network.generation_config` what is missing there and follows from the vocabulary.

    Where the file itself is missing, all of it does. Raises `ModelError` if the vocabulary lacks a token that Whisper cannot do without.
    """
    config, vocabulary = network.config, tokenizer.get_vocab()
    if missing := [token for token in (START, END, NO_TIMESTAMPS) if token not in vocabulary]:
        raise ModelError(f"{source}: its tokenizer has no token {missing[0]}, so it is not Whisper's; restore the model's tokenizer files")
    settings = network.generation_config
    if getattr(settings, "_from_model_config", False):  # there was no file: the rest are defaults of the class
        settings = network.generation_config = GenerationConfig(
            decoder_start_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
            bos_token_id=vocabulary[END],
            pad_token_id=vocabulary[END],
            suppress_tokens=settings.suppress_tokens or suppressed_tokens(tokenizer, vocabulary),
            begin_suppress_tokens=[vocabulary[token] for token in ("\u0120", END) if token in vocabulary],
            max_length=settings.max_length or config.max_target_positions,
        )
    for name, value in _derived(config, vocabulary).items():
        if value is not None and getattr(settings, name, None) is None:
            setattr(settings, name, value)
    if getattr(settings, "is_multilingual", None) is None:
        settings.is_multilingual = is_multilingual(vocabulary)
    if settings.is_multilingual:
        _add_languages(settings, vocabulary, source)
    config.forced_decoder_ids = None  # a prompt of 2022, which `generate` would prefer to the one that is asked for


def is_multilingual(vocabulary: Mapping[str, int]) -> bool:
    """Return whether the vocabulary is of a model that is told language and task."""
    return vocabulary[END] != ENGLISH_END and bool(language_tokens(vocabulary)) and "<|transcribe|>" in vocabulary


def language_tokens(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Return the tokens that name languages ("<|de|>"), with their ids."""
    tokens = (f"<|{code}|>" for code in world_languages())
    return {token: vocabulary[token] for token in tokens if token in vocabulary}


def languages_by_token(settings: Any) -> dict[int, str]:
    """Return the codes of the languages that a multilingual model tells apart, by the ids of their tokens."""
    return {token: name[2:-2] for name, token in settings.lang_to_id.items()}


def suppressed_tokens(tokenizer: Any, vocabulary: Mapping[str, int]) -> list[int]:
    """Return the tokens that OpenAI suppresses at every step: symbols that are not speech, and tokens that are no text."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    found = {ids(" -")[0], ids(" '")[0]} | {vocabulary[token] for token in CONTROL if token in vocabulary}
    for symbol in (*SYMBOLS, *MUSIC):
        for tokens in (ids(symbol), ids(f" {symbol}")):
            if len(tokens) == 1 or symbol in MUSIC:
                found.add(tokens[0])
    return sorted(found)


def _derived(config: Any, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    return {
        "decoder_start_token_id": vocabulary[START],
        "eos_token_id": vocabulary[END],
        "bos_token_id": vocabulary[END],
        "pad_token_id": vocabulary[END],
        "max_length": config.max_target_positions,
        "no_timestamps_token_id": vocabulary[NO_TIMESTAMPS],
        "prev_sot_token_id": vocabulary.get("<|startofprev|>"),
        "max_initial_timestamp_index": MAX_INITIAL_TIMESTAMP,
        "return_timestamps": False,
    }


def _add_languages(settings: Any, vocabulary: Mapping[str, int], source: str) -> None:
    if not getattr(settings, "lang_to_id", None):
        settings.lang_to_id = language_tokens(vocabulary)
    if not getattr(settings, "task_to_id", None):
        settings.task_to_id = {task: vocabulary[f"<|{task}|>"] for task in TASKS if f"<|{task}|>" in vocabulary}
    if not settings.lang_to_id or "transcribe" not in settings.task_to_id:
        raise ModelError(
            f"{source}: generation_config.json says that the model is multilingual, but its tokenizer has no tokens of languages or no "
            "<|transcribe|>; restore the model's tokenizer files"
        )
