"""Languages: which one a user means, and whether a model knows it. The one rule for PyTorch and all runtimes."""

import re
from collections.abc import Sequence

from sottovoce.errors import ModelError

DEFAULT_LANGUAGE = "en"  # of a multilingual model, where nobody names one
DETECT = "auto"  # given as a language: the model detects it, recording by recording
# Codes of one language that differ between standards and models; a model knows one of them.
SAME_LANGUAGE = (("jw", "jv"), ("tl", "fil"), ("he", "iw"), ("id", "in"), ("no", "nb"), ("yi", "ji"), ("zh", "cmn"))
MORE_NAMES = {"filipino": "tl", "bokmål": "no", "farsi": "fa", "javanese": "jw"}


def world_languages() -> dict[str, str]:
    """Return codes of languages with their English names, in lower case: those that OpenAI's Whisper knows."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return dict(LANGUAGES)


def language_code(asked: str, known: Sequence[str] = ()) -> str:
    """Return the code that `asked` means: a code ("de"), a regional one ("de-DE", "DE") or an English name ("German").

    `known`: the model's codes; where they write the language in another way ("nb", "no"), theirs is returned. "auto" stays what it is.
    A name that is not known is returned as it came, in lower case.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    name = asked.strip().lower()
    code = {**TO_LANGUAGE_CODE, **MORE_NAMES}.get(name) or name
    if code not in known and (regional := re.fullmatch(r"([a-z]{2,3})[-_][a-z0-9_-]+", code)):
        code = regional[1]
    same = next((group for group in SAME_LANGUAGE if code in group), (code,))
    return next((one for one in same if one in known), code)


def choose_language(asked: str | None, known: Sequence[str], *, detects: bool, source: str) -> str | None:
    """Return the code of the language that a user asked a model for; None: nobody asked, so it is `default_language`.

    `known`: the codes that the model transcribes; none: its files do not say. `detects`: whether it can tell them apart; then "auto" is
    returned as it is. Raises `ModelError` for a language that the model does not know, and for "auto" where it cannot detect.
    """
    if asked is None:
        return None
    code = language_code(asked, known)
    if code == DETECT:
        if detects or len(known) == 1:
            return DETECT if detects else known[0]
        raise ModelError(f"{source}: cannot tell languages apart; name the language with --language, or leave it out")
    if code in (known or world_languages()):
        return code
    if len(known) == 1:
        name = world_languages().get(known[0], known[0]).capitalize()
        raise ModelError(
            f"{source}: transcribes {name} ({known[0]}) only, and language {asked!r} was asked for; leave --language out, or take a "
            "multilingual model"
        )
    raise ModelError(f"{source}: language {asked!r} is not one this model knows: {', '.join(sorted(known or world_languages()))}")


def default_language(known: Sequence[str], source: str) -> str:
    """Return the language of a model where nobody names one: English, or the only one that it knows. Raises `ModelError`."""
    if not known or DEFAULT_LANGUAGE in known:
        return DEFAULT_LANGUAGE
    if len(known) == 1:
        return known[0]
    raise ModelError(f"{source}: does not know English; name the language with --language: {', '.join(sorted(known))}")
