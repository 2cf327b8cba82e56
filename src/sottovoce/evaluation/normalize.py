"""Text normalization before scoring."""

from functools import cache


@cache
def _normalizer() -> object:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def normalize(text: str) -> str:
    """`text` by Whisper's English normalizer: lower case, no punctuation, numbers as digits, British spellings as American."""
    return str(_normalizer()(text))  # type: ignore[operator]
