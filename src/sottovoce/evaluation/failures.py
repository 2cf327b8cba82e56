"""Failures that an error rate hides: loops, empty output, truncation, words on silence."""

import zlib

from sottovoce.evaluation.normalize import counts_characters, normalize

COMPRESSION_LIMIT = 2.4  # zlib ratio above which Whisper itself takes a transcript for a loop
REPEATS = 5  # consecutive repetitions of the same words that make a loop
LONGEST_LOOP = 8  # words in the repeated phrase
CHARACTER_REPEATS = 10  # consecutive repetitions of one character: fewer are laughter, or zeros of a number
LONGEST_CHARACTER_LOOP = 24  # characters in the repeated phrase
# Characters that are compressed together, about what is said in 90 s. Text of any kind compresses the better the longer it is.
STRETCH = 1500

FAILURES = ("looped", "empty", "spoken_silence", "truncated")


def is_loop(text: str, *, characters: bool = False) -> bool:
    """Tell whether a normalized text repeats the same units over and over, or a stretch of it compresses as well as if it did.

    `characters`: the units are characters of a language without spaces (see `normalize`), not words.
    """
    units = text.split()
    for size in range(1, (LONGEST_CHARACTER_LOOP if characters else LONGEST_LOOP) + 1):
        enough = CHARACTER_REPEATS if characters and size == 1 else REPEATS
        same = 0  # consecutive units that equal the one `size` before; counted one by one, so that a loop may start anywhere
        for i in range(size, len(units)):
            same = same + 1 if units[i] == units[i - size] else 0
            if same >= size * (enough - 1):
                return True
    whole = "".join(units) if characters else text
    last = max(0, len(whole) - STRETCH)
    starts = [*range(0, last, STRETCH // 2), last]
    return any(compression_ratio(whole[start : start + STRETCH]) > COMPRESSION_LIMIT for start in starts)


def text_loops(text: str, language: str | None) -> bool:
    """Tell whether a text as it was recognized loops, after normalization by its language."""
    return is_loop(normalize(text, language), characters=counts_characters(language))


def compression_ratio(text: str) -> float:
    """Return the length of `text` in UTF-8 over its length when compressed by zlib; 0 for an empty text."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 0.0
