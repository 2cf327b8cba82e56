"""Word error rates of transcripts with intervals, and counts of the failures that a rate hides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from sottovoce.errors import DataError
from sottovoce.evaluation.failures import FAILURES, is_loop
from sottovoce.evaluation.intervals import bootstrap_interval, sign_test
from sottovoce.evaluation.normalize import normalize
from sottovoce.evaluation.transcripts import Transcript


@dataclass(frozen=True, kw_only=True)
class UtteranceScore:
    """Word and character errors of one hypothesis against its normalized reference of `words` words and `characters` characters."""

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
        """Return the number of substitutions, insertions and deletions."""
        return self.substitutions + self.insertions + self.deletions


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A system against a reference system on the same utterances.

    `difference`: its WER minus the reference's, with a 95 % interval `low` .. `high` of the paired bootstrap over utterances.
    `better`, `worse`: ids with fewer and with more word errors; `sign_test`: two-sided p of as uneven a split by chance.
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
        """Return the share of utterances that did not get worse, or None without a reference system."""
        return None if self.paired is None else 1 - len(self.paired.worse) / len(self.utterances)


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
    """Align one transcript with its reference, both normalized."""
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
    other = {t.id: score_utterance(t) for t in against if t.reference is not None}
    missing = [u.id for u in scored if u.id not in other]
    if missing:
        raise DataError(f"the reference system has no transcript of {missing[0]!r} (and {len(missing) - 1} others)")
    changed = [u.id for u in scored if u.words != other[u.id].words]
    if changed:
        raise DataError(f"the reference text of {changed[0]!r} differs between the two systems' transcripts")
    more = np.array([u.errors - other[u.id].errors for u in scored])
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


def score_to_dict(score: Score) -> Mapping[str, object]:
    """Convert a score to plain data without its utterances; rates in percent."""
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
