"""Transcripts to word error rates with intervals, and counts of the failures that a rate hides."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import jiwer
import numpy as np

from sottovoce.errors import DataError
from sottovoce.evaluation.transcripts import Transcript

RESAMPLES = 1000  # of the bootstrap over utterances
COMPRESSION_LIMIT = 2.4  # zlib ratio above which Whisper itself takes a transcript for a loop
REPEATS = 5  # consecutive repetitions of the same words that make a loop
LONGEST_LOOP = 8  # words in the repeated phrase


FAILURES = ("looped", "empty", "spoken_silence", "truncated")


@dataclass(frozen=True, kw_only=True)
class UtteranceScore:
    """Word and character errors of one utterance against its normalised reference of `words` words, `characters` characters."""

    id: str
    words: int
    substitutions: int
    insertions: int
    deletions: int
    characters: int
    character_errors: int
    looped: bool
    empty: bool
    truncated: bool

    @property
    def errors(self) -> int:
        """Substitutions, insertions and deletions."""
        return self.substitutions + self.insertions + self.deletions


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A system against a reference system on the same utterances.

    `difference`: its WER minus the reference's, with a 95 % interval `low` .. `high` of the paired bootstrap over utterances.
    `better`, `worse`: ids with fewer and with more word errors; `sign_test`: two-sided p of as lopsided a split by chance.
    """

    difference: float
    low: float
    high: float
    better: tuple[str, ...]
    worse: tuple[str, ...]
    sign_test: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """Corpus scores: all errors over all reference words (`wer`) or characters (`cer`), with the WER's 95 % bootstrap interval
    over utterances. `capped_wer`: no utterance counts with more errors than it has words, so that a single loop, hundreds of
    words long, does not outweigh everything else.

    Failures, each a list of ids: `looped`: a repeating transcript; `empty`: none although words were spoken;
    `spoken_silence`: words where the reference is empty; `truncated`: the token limit was reached. `paired`: the comparison
    with a reference system, None if there is none. `unscored`: utterances without a reference or with an empty one.
    """

    utterances: tuple[UtteranceScore, ...]
    words: int
    substitutions: int
    insertions: int
    deletions: int
    wer: float
    low: float
    high: float
    capped_wer: float
    cer: float
    looped: tuple[str, ...]
    empty: tuple[str, ...]
    spoken_silence: tuple[str, ...]
    truncated: tuple[str, ...]
    paired: Paired | None
    unscored: int

    @property
    def quality_of_inference(self) -> float | None:
        """Share of utterances that did not get worse, None without a reference system."""
        return None if self.paired is None else 1 - len(self.paired.worse) / len(self.utterances)


@cache
def _normalizer() -> object:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def normalize(text: str) -> str:
    """`text` by Whisper's English normalizer: lower case, no punctuation, numbers as digits, British spellings as American."""
    return str(_normalizer()(text))  # type: ignore[operator]


def score_transcripts(transcripts: Sequence[Transcript], against: Sequence[Transcript] | None = None, *, seed: int = 0) -> Score:
    """Score transcripts against the references they carry; `against`: those of a reference system, matched by id.

    Raises `DataError` if no utterance has a reference, or if the two systems' utterances differ.
    """
    spoken = [t for t in transcripts if t.reference is not None and normalize(t.reference)]
    if not spoken:
        raise DataError("no utterance has a reference text, so there is no word error rate; give data with transcripts")
    scored = [score_utterance(t) for t in spoken]
    errors, words = np.array([u.errors for u in scored]), np.array([u.words for u in scored])
    low, high = bootstrap_interval(errors, words, seed=seed)
    silence = [t for t in transcripts if t.reference is not None and not normalize(t.reference)]
    return Score(
        utterances=tuple(scored),
        words=int(words.sum()),
        substitutions=sum(u.substitutions for u in scored),
        insertions=sum(u.insertions for u in scored),
        deletions=sum(u.deletions for u in scored),
        wer=float(errors.sum() / words.sum()),
        low=low,
        high=high,
        capped_wer=float(np.minimum(errors, words).sum() / words.sum()),
        cer=sum(u.character_errors for u in scored) / sum(u.characters for u in scored),
        looped=tuple(u.id for u in scored if u.looped),
        empty=tuple(u.id for u in scored if u.empty),
        spoken_silence=tuple(t.id for t in silence if normalize(t.text)),
        truncated=tuple(t.id for t in transcripts if t.truncated),
        paired=None if against is None else _compare(scored, against, seed),
        unscored=len(transcripts) - len(scored),
    )


def score_utterance(transcript: Transcript) -> UtteranceScore:
    """Align one transcript with its reference, both normalised."""
    reference, hypothesis = normalize(transcript.reference or ""), normalize(transcript.text)
    counts = jiwer.process_words(reference, hypothesis)
    characters = jiwer.process_characters(reference, hypothesis)
    return UtteranceScore(
        id=transcript.id,
        words=len(reference.split()),
        substitutions=counts.substitutions,
        insertions=counts.insertions,
        deletions=counts.deletions,
        characters=len(reference),
        character_errors=characters.substitutions + characters.insertions + characters.deletions,
        looped=is_loop(hypothesis) and not is_loop(reference),
        empty=not hypothesis,
        truncated=transcript.truncated,
    )


def _compare(scored: Sequence[UtteranceScore], against: Sequence[Transcript], seed: int) -> Paired:
    before = {t.id: score_utterance(t) for t in against if t.reference is not None}
    missing = [u.id for u in scored if u.id not in before]
    if missing:
        raise DataError(f"the reference system has no transcript of {missing[0]!r} (and {len(missing) - 1} others)")
    changed = [u.id for u in scored if u.words != before[u.id].words]
    if changed:
        raise DataError(f"the reference text of {changed[0]!r} differs between the two systems' transcripts")
    more = np.array([u.errors - before[u.id].errors for u in scored])
    words = np.array([u.words for u in scored])
    low, high = bootstrap_interval(more, words, seed=seed)
    better = tuple(u.id for u, change in zip(scored, more, strict=True) if change < 0)
    worse = tuple(u.id for u, change in zip(scored, more, strict=True) if change > 0)
    return Paired(
        difference=float(more.sum() / words.sum()),
        low=low,
        high=high,
        better=better,
        worse=worse,
        sign_test=sign_test(len(better), len(worse)),
    )


def sign_test(better: int, worse: int) -> float:
    """Two-sided exact p that fair coins fall at least as lopsidedly; ties are left out beforehand."""
    count, fewer = better + worse, min(better, worse)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return min(1.0, float(Fraction(2 * tail, 2**count)))


@dataclass(frozen=True)
class Gate:
    """May the system ship? `added`: by failure, ids that fail and did not fail in the reference system.

    It is open if no failure was added more than `tolerance` times.
    """

    added: Mapping[str, tuple[str, ...]]
    tolerance: int

    @property
    def open(self) -> bool:
        """Whether every failure is within the tolerance."""
        return all(len(ids) <= self.tolerance for ids in self.added.values())


def gate(score: Score, reference: Score, *, tolerance: int = 0) -> Gate:
    """Compare the failures of two scores of the same data."""
    added = {
        failure: tuple(name for name in getattr(score, failure) if name not in set(getattr(reference, failure))) for failure in FAILURES
    }
    return Gate(added, tolerance)


def bootstrap_interval(errors: np.ndarray, words: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
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
    paired = score.paired
    return {
        "utterances": len(score.utterances),
        "words": score.words,
        "wer_percent": 100 * score.wer,
        "interval_percent": [100 * score.low, 100 * score.high],
        "capped_wer_percent": 100 * score.capped_wer,
        "cer_percent": 100 * score.cer,
        "substitutions": score.substitutions,
        "insertions": score.insertions,
        "deletions": score.deletions,
        **{failure: list(getattr(score, failure)) for failure in FAILURES},
        "paired": None
        if paired is None
        else {
            "difference_percent": 100 * paired.difference,
            "interval_percent": [100 * paired.low, 100 * paired.high],
            "better": list(paired.better),
            "worse": list(paired.worse),
            "sign_test": paired.sign_test,
            "quality_of_inference": score.quality_of_inference,
        },
        "unscored": score.unscored,
    }
