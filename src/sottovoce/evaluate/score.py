"""Transcripts to word error rates with intervals, and counts of the failures that a rate hides."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import jiwer
import numpy as np

from sottovoce.errors import DataError
from sottovoce.evaluate.transcribe import Transcript

RESAMPLES = 1000  # of the bootstrap over utterances
COMPRESSION_LIMIT = 2.4  # zlib ratio above which Whisper itself takes a transcript for a loop
REPEATS = 5  # consecutive repetitions of the same words that make a loop
LONGEST_LOOP = 8  # words in the repeated phrase


@dataclass(frozen=True, kw_only=True)
class UtteranceScore:
    """Word errors of one utterance against its normalised reference of `words` words."""

    id: str
    words: int
    substitutions: int
    insertions: int
    deletions: int
    looped: bool
    empty: bool

    @property
    def errors(self) -> int:
        """Substitutions, insertions and deletions."""
        return self.substitutions + self.insertions + self.deletions


@dataclass(frozen=True, kw_only=True)
class Score:
    """Corpus scores: all errors over all reference words, with a 95 % bootstrap interval over utterances.

    `looped`, `empty`: ids of utterances with a repeating transcript, or with none although words were spoken. `worse`: ids
    with more errors than in the reference system, None if there is none. `unscored`: utterances without a reference.
    """

    utterances: tuple[UtteranceScore, ...]
    words: int
    substitutions: int
    insertions: int
    deletions: int
    wer: float
    low: float
    high: float
    looped: tuple[str, ...]
    empty: tuple[str, ...]
    worse: tuple[str, ...] | None
    unscored: int


@cache
def _normalizer() -> object:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def normalize(text: str) -> str:
    """`text` by Whisper's English normalizer: lower case, no punctuation, numbers as digits, British spellings as American."""
    return str(_normalizer()(text))  # type: ignore[operator]


def score_transcripts(
    transcripts: Sequence[Transcript], against: Sequence[Transcript] | None = None, *, seed: int = 0
) -> Score:
    """Score transcripts against the references they carry; `against`: those of a reference system, matched by id.

    Raises `DataError` if no utterance has a reference, or if the two systems' utterances differ.
    """
    scored = [score_utterance(t) for t in transcripts if t.reference is not None and normalize(t.reference)]
    if not scored:
        raise DataError("no utterance has a reference text, so there is no word error rate; give data with transcripts")
    worse = None
    if against is not None:
        before = {t.id: score_utterance(t).errors for t in against if t.reference is not None}
        missing = [u.id for u in scored if u.id not in before]
        if missing:
            raise DataError(f"the reference system has no transcript of {missing[0]!r} (and {len(missing) - 1} others)")
        worse = tuple(u.id for u in scored if u.errors > before[u.id])
    errors, words = np.array([u.errors for u in scored]), np.array([u.words for u in scored])
    low, high = bootstrap_interval(errors, words, seed=seed)
    return Score(
        utterances=tuple(scored),
        words=int(words.sum()),
        substitutions=sum(u.substitutions for u in scored),
        insertions=sum(u.insertions for u in scored),
        deletions=sum(u.deletions for u in scored),
        wer=float(errors.sum() / words.sum()),
        low=low,
        high=high,
        looped=tuple(u.id for u in scored if u.looped),
        empty=tuple(u.id for u in scored if u.empty),
        worse=worse,
        unscored=len(transcripts) - len(scored),
    )


def score_utterance(transcript: Transcript) -> UtteranceScore:
    """Align one transcript with its reference, both normalised."""
    reference, hypothesis = normalize(transcript.reference or ""), normalize(transcript.text)
    counts = jiwer.process_words(reference, hypothesis)
    return UtteranceScore(
        id=transcript.id,
        words=len(reference.split()),
        substitutions=counts.substitutions,
        insertions=counts.insertions,
        deletions=counts.deletions,
        looped=is_loop(hypothesis) and not is_loop(reference),
        empty=not hypothesis,
    )


def bootstrap_interval(
    errors: np.ndarray, words: np.ndarray, *, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the corpus rate when utterances are drawn anew with replacement."""
    draws = np.random.default_rng(seed).integers(0, len(errors), size=(resamples, len(errors)))
    rates = errors[draws].sum(axis=1) / np.maximum(words[draws].sum(axis=1), 1)
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def is_loop(text: str) -> bool:
    """Whether the same words come again and again: by repetition, or because the text compresses too well."""
    words = text.split()
    for size in range(1, LONGEST_LOOP + 1):
        run = 1
        for i in range(size, len(words) - size + 1, size):
            run = run + 1 if words[i : i + size] == words[i - size : i] else 1
            if run >= REPEATS:
                return True
    raw = text.encode()
    return len(raw) > 0 and len(raw) / len(zlib.compress(raw)) > COMPRESSION_LIMIT


def as_rows(score: Score) -> Mapping[str, object]:
    """The score's figures without its utterances, rates in percent."""
    return {
        "utterances": len(score.utterances),
        "words": score.words,
        "wer_percent": 100 * score.wer,
        "interval_percent": [100 * score.low, 100 * score.high],
        "substitutions": score.substitutions,
        "insertions": score.insertions,
        "deletions": score.deletions,
        "looped": list(score.looped),
        "empty": list(score.empty),
        "worse": None if score.worse is None else list(score.worse),
        "unscored": score.unscored,
    }
