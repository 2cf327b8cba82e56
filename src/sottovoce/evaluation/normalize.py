"""Text normalization before scoring, by language, and the units that an error rate counts.

English goes through Whisper's English normalizer. All other languages go through Whisper's basic normalizer with marks kept: lower case,
compatibility forms made one (NFKC), text in brackets, punctuation and symbols removed. Letters stay what they are ("ü" is not "u"), and so
do combining marks (category M: vowel signs and viramas of Indic scripts, tone and vowel marks of Thai). Whisper's own basic normalizer
replaces marks by spaces, which cuts words of these scripts apart.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache

from sottovoce.models.languages import DEFAULT_LANGUAGE, DETECT, language_code

# Written without spaces between words: their units are characters.
WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "km", "yue"})
# Codes of three letters and of varieties that stand for one above.
OTHER_CODES = {
    "eng": "en", "zho": "zh", "chi": "zh", "cmn": "zh", "wuu": "zh", "hak": "zh", "jpn": "ja", "tha": "th", "lao": "lo", "mya": "my",
    "bur": "my", "khm": "km", "tur": "tr", "aze": "az", "ara": "ar", "heb": "he", "iw": "he", "fas": "fa", "per": "fa", "urd": "ur",
}  # fmt: skip
DOTTED_I = frozenset({"tr", "az"})  # lower case of I is ı, of İ is i
# Signs that readers add and most texts leave out: short vowels of Arabic script with tatweel, points of Hebrew.
OPTIONAL_SIGNS = {
    **dict.fromkeys(("ar", "fa", "ur", "ps", "sd"), re.compile("[\u0610-\u061a\u0640\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06ed]")),
    "he": re.compile("[\u0591-\u05bd\u05bf-\u05c7]"),
}
INVISIBLE = re.compile("[\u00ad\u034f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")  # joiners, directions, soft hyphen


@cache
def scoring_language(language: str | None) -> str:
    """Return the code by which a text is normalized: that of `language` (code, regional code or English name), or the default."""
    if language is None or language == DETECT:
        return DEFAULT_LANGUAGE
    # A bare code of two letters needs no table, which takes a second to load.
    code = language if re.fullmatch("[a-z]{2}", language) else language_code(language)
    return OTHER_CODES.get(code, code)


def counts_characters(language: str | None) -> bool:
    """Tell whether the language is written without spaces between words, so that characters are counted instead of words."""
    return scoring_language(language) in WITHOUT_SPACES


@lru_cache(maxsize=1 << 16)  # scores, gates and tables normalize the same texts again
def normalize(text: str, language: str | None = None) -> str:
    """Normalize `text` by its language (None: English): the units that are counted, with a space between each two.

    The units are words, or characters where `counts_characters`. A unit without a letter or digit is left out, so "..." or "♪" becomes "".
    """
    code = scoring_language(language)
    if code == DEFAULT_LANGUAGE:
        words = _english()(text).split()
    else:
        for pattern in (INVISIBLE, OPTIONAL_SIGNS.get(code)):
            text = pattern.sub("", text) if pattern else text
        if code in DOTTED_I:
            text = text.replace("I", "ı").replace("İ", "i")
        words = _basic()(text).split()
    words = [word for word in words if has_words(word)]
    return " ".join("".join(words)) if code in WITHOUT_SPACES else " ".join(words)


def has_words(text: str) -> bool:
    """Tell whether `text` holds a letter or a digit."""
    return any(unicodedata.category(character)[0] in "LN" for character in text)


def plain_word(word: str) -> str:
    """Return a single word in lower case without punctuation, apostrophes inside kept; marks of any script stay.

    (`normalize` may join words or cut them apart, which a word with a confidence of its own must not be.)
    """
    plain = unicodedata.normalize("NFKC", word).lower()
    kept = "".join(character for character in plain if character == "'" or unicodedata.category(character)[0] in "LMN")
    return kept.strip("'")


@cache
def _english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    normalizer: Callable[[str], str] = EnglishTextNormalizer()
    return normalizer


@cache
def _basic() -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer

    normalizer: Callable[[str], str] = BasicTextNormalizer(preserve_marks=True)
    return normalizer
