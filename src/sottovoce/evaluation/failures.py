"""Failures that a word error rate hides: loops, empty output, truncation, words on silence."""

import zlib

COMPRESSION_LIMIT = 2.4  # zlib ratio above which Whisper itself takes a transcript for a loop
REPEATS = 5  # consecutive repetitions of the same words that make a loop
LONGEST_LOOP = 8  # words in the repeated phrase
FAILURES = ("looped", "empty", "spoken_silence", "truncated")


def is_loop(text: str) -> bool:
    """Tell whether a normalized text repeats the same words over and over, or compresses as well as if it did."""
    words = text.split()
    for size in range(1, LONGEST_LOOP + 1):
        run = 1
        for i in range(size, len(words) - size + 1, size):
            run = run + 1 if words[i : i + size] == words[i - size : i] else 1
            if run >= REPEATS:
                return True
    raw = text.encode()
    return len(raw) > 0 and len(raw) / len(zlib.compress(raw)) > COMPRESSION_LIMIT
