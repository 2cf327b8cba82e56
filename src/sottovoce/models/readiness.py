"""Whether a loaded recognizer can transcribe: its settings are whole, and its tokenizer is its own."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sottovoce.errors import ModelError
from sottovoce.models.decoding import set_aside_sentence
from sottovoce.models.speech_model import SpeechModel
from sottovoce.system.json_object import read_json_object
from sottovoce.system.notices import notice

LAYER_NUMBER = r"(^|\.)(layers?|blocks?|h)\.\d+\."
LARGEST_COUNT = 1000  # layers of a model: ten times what any recognizer has
IDS = ("bos_token_id", "pad_token_id", "decoder_start_token_id", "no_timestamps_token_id", "prev_sot_token_id")
LISTS_OF_IDS = ("suppress_tokens", "begin_suppress_tokens")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model")
# Vocabularies are padded at the end (to multiples of 128, say); Whisper's timestamps are rows without tokens in some tokenizers.
PADDED_ROWS = 127
PADDED_SHARE = 0.1


def write_generation_config(settings: Any, folder: Path) -> None:
    """Write `generation_config.json`. `save_pretrained` refuses a completed one with flags of sampling that published models have."""
    settings.to_json_file(folder / "generation_config.json", use_diff=True, keys_to_pop=["compile_config"])


def make_ready(model: SpeechModel) -> SpeechModel:
    """Complete the settings of `model`, check its tokenizer, and name in a notice what of its decoding settings is set aside.

    Raises `ModelError` where it could not transcribe: the tokenizer is missing or of another model, or nothing says which tokens begin
    and end a transcript.
    """
    check_setting_types(model.source, model.network.generation_config)
    if getattr(model.processor, "tokenizer", None) is None:
        raise ModelError(f"{model.source}: its processor has no tokenizer; {tokenizer_files(model.source)}")
    _check_coverage(model)
    model.complete_settings()
    _check_special_tokens(model)
    if (sentence := set_aside_sentence(model.source, model.network.generation_config)) is not None:
        notice(sentence)
    return model


def refuse_giant(source: str, config: Any) -> None:
    """Raise `ModelError` if a configuration asks for more layers than a recognizer has: building them would never end."""

    def look(settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if isinstance(value, Mapping):
                look(value)
            elif str(name).endswith("layers") and isinstance(value, int) and value > LARGEST_COUNT:
                raise ModelError(
                    f"{source}: config.json says {name} is {value}, and at most {LARGEST_COUNT} are expected; fetch the model again"
                )

    look(config.to_dict())


def refuse_broken_settings(folder: Path) -> None:
    """Raise `ModelError` if there is a generation_config.json that cannot be read: `transformers` goes on without it, and says nothing."""
    file = folder / "generation_config.json"
    if not file.exists():
        return
    try:
        read_json_object(file)
    except (OSError, ValueError) as exc:
        raise ModelError(f"{file}: {exc}; fetch the model again, or remove the file to have it derived") from exc


def refuse_other_tensors(source: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise `ModelError` unless the weights are those that config.json describes.

    `transformers` fills what is `missing` with random numbers and leaves out what is `unexpected`. A tensor outside of all layers that is
    left out (a head of another task, say) is named in a notice.
    """
    if absent := sorted(missing):
        raise ModelError(
            f"{source}: config.json describes {len(absent)} tensors that its weights do not have, {absent[0]!r} first; "
            "fetch the model again, weights and config.json of the same version"
        )
    odd = sorted(unexpected)
    if beyond := [name for name in odd if re.search(LAYER_NUMBER, name)]:
        raise ModelError(
            f"{source}: its weights have {len(beyond)} tensors of layers that config.json does not describe, {beyond[0]!r} first; "
            "fetch the model again, weights and config.json of the same version"
        )
    if odd:
        notice(f"{source}: {len(odd)} tensors are not part of the recognizer and are left out, {odd[0]!r} first")


def check_setting_types(source: str, settings: Any) -> None:
    """Raise `ModelError` if what decoding reads from the generation settings is not of the kind that it must be."""
    wanted: dict[str, tuple[bool, str]] = {}
    for name in IDS:
        wanted[name] = (_is_number(getattr(settings, name, None)), "a token id (a whole number)")
    ends = getattr(settings, "eos_token_id", None)
    wanted["eos_token_id"] = (_is_number(ends) or (bool(ends) and _is_list_of_numbers(ends)), "a token id, or a list of them")
    for name in LISTS_OF_IDS:
        value = getattr(settings, name, None)
        wanted[name] = (value is None or _is_list_of_numbers(value), "a list of token ids")
    wanted["max_length"] = (_is_number(getattr(settings, "max_length", None)), "a whole number")
    for name in ("lang_to_id", "task_to_id"):
        value = getattr(settings, name, None)
        wanted[name] = (value is None or (isinstance(value, dict) and all(map(_is_number, value.values()))), "an object of token ids")
    for name, (fits, kind) in wanted.items():
        if not fits:
            raise ModelError(f"{source}: generation_config.json says {name} is {getattr(settings, name)!r}; wanted {kind}")


def _is_number(value: object) -> bool:
    """Whether a setting is a whole number, or not given."""
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _is_list_of_numbers(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _check_coverage(model: SpeechModel) -> None:
    """The tokenizer has a token for nearly every row of the embedding, and for no other."""
    rows, ids = model.vocabulary_size, set(model.processor.tokenizer.get_vocab().values())
    if beyond := sum(i >= rows for i in ids):
        raise ModelError(
            f"{model.source}: its tokenizer has {len(ids)} tokens, {beyond} of them beyond the model's vocabulary of {rows}; "
            f"{tokenizer_files(model.source)}, or call resize_token_embeddings if tokens were added"
        )
    missing = sum(i not in ids for i in range(min(rows, model.first_untexted_id or rows)))
    if missing > max(PADDED_ROWS, PADDED_SHARE * rows) or not ids:
        raise ModelError(
            f"{model.source}: its tokenizer has {len(ids)} tokens, and the model's vocabulary {rows}, so that words would be lost; "
            f"{tokenizer_files(model.source)}"
        )


def _check_special_tokens(model: SpeechModel) -> None:
    """Every id that decoding relies on is the token of that name."""
    names = {i: token for token, i in model.processor.tokenizer.get_vocab().items()}
    special = set(model.processor.tokenizer.all_special_ids)
    for index, wanted in model.special_tokens():
        found = names.get(index)
        if found is None or (wanted is not None and found != wanted) or (wanted is None and index not in special):
            has = "no token" if found is None else repr(found)
            raise ModelError(
                f"{model.source}: its settings name token {index} as {wanted or 'the end or start of a transcript'}, and its tokenizer has "
                f"{has} there, so it is of another model; {tokenizer_files(model.source)}"
            )


def tokenizer_files(source: str) -> str:
    """Return what to do about the tokenizer files of `source`."""
    folder = Path(source).expanduser()
    there = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not folder.is_dir():
        return "take a model with the tokenizer that it was trained with"
    if "tokenizer.json" in there:
        return f"replace {', '.join(there)} by those of the model that it was made from"
    return f"{folder / 'tokenizer.json'} is missing (or vocab.json and merges.txt): copy it from the model that it was made from"
