"""Word and character error rates of transcripts with intervals, and counts of the failures that a rate hides."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jiwer
import numpy as np

from sottovoce.errors import DataError, first_of
from sottovoce.evaluation.failures import FAILURES, is_loop
from sottovoce.evaluation.intervals import bootstrap_interval, sign_test
from sottovoce.evaluation.normalize import counts_characters, normalize, scoring_language
from sottovoce.evaluation.transcripts import Transcript

Metric = Literal["WER", "CER"]


@dataclass(frozen=True, kw_only=True)
class UtteranceScore:
    """Errors of one hypothesis against its normalized reference of `words` words and `characters` characters.

    `language`: the code whose rules normalized both. In a language without spaces every character is a word.
    """

    id: str
    language: str
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
        """Return the number of substitutions, insertions and deletions of words."""
        return self.substitutions + self.insertions + self.deletions


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A system against the original on the same utterances.

    `difference`: its rate (see `Score.metric`) minus the reference's, with a 95 % interval `low` .. `high` of the paired bootstrap over
    utterances. `better`, `worse`: ids with fewer and with more errors; `sign_test`: two-sided p of as uneven a split by chance.
    """

    difference: float
    low: float
    high: float
    better: tuple[str, ...]
    worse: tuple[str, ...]
    sign_test: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """Corpus scores: all errors over all reference words (`wer`) or characters (`cer`); NaN where no utterance has a reference with words.

    `metric`: the rate that leads. It is "CER" if an utterance is in a language written without spaces, else "WER". `low`, `high`: the 95 %
    bootstrap interval over utterances of that rate. `capped_wer`, `capped_cer`: no utterance counts with more errors than its reference
    has words (characters), so that a single loop, hundreds of words long, does not outweigh everything else. `languages`: codes of the
    normalization. `decodings`: how the transcripts were decoded, "greedy", "fallback" or "long-form".

    Failures, each a list of ids: `looped`: a repeating transcript; `empty`: none although words were spoken; `spoken_silence`: words where
    the reference is empty; `truncated`: the token limit was reached. `silences`: utterances whose reference is empty; `invented_words`:
    words (characters) in their transcripts. `paired`: the comparison with the original, None if there is none. `unscored`: utterances
    without a reference.
    """

    utterances: tuple[UtteranceScore, ...]
    metric: Metric
    languages: tuple[str, ...]
    decodings: tuple[str, ...]
    words: int
    substitutions: int
    insertions: int
    deletions: int
    characters: int
    wer: float
    cer: float
    low: float
    high: float
    capped_wer: float
    capped_cer: float
    looped: tuple[str, ...]
    empty: tuple[str, ...]
    spoken_silence: tuple[str, ...]
    truncated: tuple[str, ...]
    silences: int
    invented_words: int
    paired: Paired | None
    unscored: int

    @property
    def rate(self) -> float:
        """Return the rate that leads, `wer` or `cer`."""
        return self.cer if self.metric == "CER" else self.wer

    @property
    def capped_rate(self) -> float:
        """Return the capped form of the rate that leads."""
        return self.capped_cer if self.metric == "CER" else self.capped_wer

    @property
    def quality_of_inference(self) -> float | None:
        """Return the share of utterances that did not get worse, or None without a comparison."""
        return None if self.paired is None else 1 - len(self.paired.worse) / len(self.utterances)


def score_transcripts(
    transcripts: Sequence[Transcript], against: Sequence[Transcript] | None = None, *, language: str | None = None, seed: int = 0
) -> Score:
    """Score transcripts against the references they carry; `against`: those of the original, matched by id.

    Every utterance is normalized by the language its transcript names, else by `language`, else as English. Raises `DataError` if no
    utterance has a reference, if the two systems' utterances differ, or if the original recognized no word.
    """
    known = [transcript for transcript in transcripts if transcript.reference is not None]
    if not known:
        raise DataError(
            "no utterance has a reference text (what was said), so there is no word error rate; give a manifest whose lines have a "
            '"text", or another data set with texts'
        )
    spoken = [t for t in known if normalize(t.reference or "", t.language or language)]
    silent = [t for t in known if not normalize(t.reference or "", t.language or language)]
    invented = {t.id: len(normalize(t.text, t.language or language).split()) for t in silent}
    scored = [score_utterance(t, language) for t in spoken]
    other = None if against is None else _scores_of_reference(scored, silent, against)
    score = combine_utterances(scored, other or None, seed=seed)
    return replace(
        score,
        metric="CER" if any(counts_characters(t.language or language) for t in spoken or silent) else "WER",
        languages=tuple(sorted({scoring_language(t.language or language) for t in known})),
        decodings=tuple(sorted({t.decoding for t in transcripts})),
        spoken_silence=tuple(name for name, count in invented.items() if count),
        truncated=tuple(t.id for t in transcripts if t.truncated),
        silences=len(silent),
        invented_words=sum(invented.values()),
        unscored=len(transcripts) - len(known),
    )


def score_pair(
    transcripts: Sequence[Transcript], against: Sequence[Transcript] | None, *, language: str | None = None
) -> tuple[Score, Score | None]:
    """Score transcripts, and those of the original (`against`, None: there is none) of the same utterances by the same rules.

    A model that detects languages may find others than the original does. Both are scored in those of `transcripts`, so both rates have
    one metric, and their difference is `Paired.difference`. Raises `DataError` as `score_transcripts` does.
    """
    score = score_transcripts(transcripts, against, language=language)
    if against is None:
        return score, None
    spoken = {t.id: t.language for t in transcripts}
    theirs = [replace(t, language=spoken[t.id]) for t in against if t.id in spoken]
    return score, score_transcripts(theirs, language=language)


def combine_utterances(scored: Sequence[UtteranceScore], against: Sequence[UtteranceScore] | None = None, *, seed: int = 0) -> Score:
    """Combine the scores of utterances, each with a reference that has words; `against`: those of the original, in any order.

    Raises `DataError` if the two systems' utterances differ.
    """
    metric: Metric = "CER" if any(counts_characters(u.language) for u in scored) else "WER"
    errors, lengths = _counts(scored, "WER")
    character_errors, characters = _counts(scored, "CER")
    low, high = bootstrap_interval(*_counts(scored, metric), seed=seed) if scored else (math.nan, math.nan)
    return Score(
        utterances=tuple(scored),
        metric=metric,
        languages=tuple(sorted({u.language for u in scored})),
        decodings=(),
        words=int(lengths.sum()),
        substitutions=sum(u.substitutions for u in scored),
        insertions=sum(u.insertions for u in scored),
        deletions=sum(u.deletions for u in scored),
        characters=int(characters.sum()),
        wer=_rate(errors, lengths),
        cer=_rate(character_errors, characters),
        low=low,
        high=high,
        capped_wer=_rate(np.minimum(errors, lengths), lengths),
        capped_cer=_rate(np.minimum(character_errors, characters), characters),
        looped=tuple(u.id for u in scored if u.looped),
        empty=tuple(u.id for u in scored if u.empty),
        spoken_silence=(),
        truncated=tuple(u.id for u in scored if u.truncated),
        silences=0,
        invented_words=0,
        paired=None if against is None else _compare(scored, against, metric, seed),
        unscored=0,
    )


def score_utterance(transcript: Transcript, language: str | None = None) -> UtteranceScore:
    """Align one transcript with its reference, both normalized by the transcript's language, else by `language`."""
    code = scoring_language(transcript.language or language)
    by_character = counts_characters(code)
    reference, hypothesis = normalize(transcript.reference or "", code), normalize(transcript.text, code)
    counts = jiwer.process_words(reference, hypothesis)
    # The spaces between characters are of the normalization, those between words are of the text.
    texts = [text.replace(" ", "") if by_character else text for text in (reference, hypothesis)]
    characters = jiwer.process_characters(*texts)
    return UtteranceScore(
        id=transcript.id,
        language=code,
        words=len(reference.split()),
        substitutions=counts.substitutions,
        insertions=counts.insertions,
        deletions=counts.deletions,
        characters=len(texts[0]),
        character_errors=characters.substitutions + characters.insertions + characters.deletions,
        looped=is_loop(hypothesis, characters=by_character) and not is_loop(reference, characters=by_character),
        empty=not hypothesis,
        truncated=transcript.truncated,
    )


def recognized_words(transcripts: Sequence[Transcript], language: str | None = None) -> int:
    """Count the words (characters, in languages without spaces) in transcripts after normalization."""
    return sum(len(normalize(t.text, t.language or language).split()) for t in transcripts)


def _counts(scored: Sequence[UtteranceScore], metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Return errors and reference lengths of each utterance, `[n]` each."""
    if metric == "CER":
        return np.array([u.character_errors for u in scored], int), np.array([u.characters for u in scored], int)
    return np.array([u.errors for u in scored], int), np.array([u.words for u in scored], int)


def _rate(errors: np.ndarray, lengths: np.ndarray) -> float:
    return float(errors.sum() / lengths.sum()) if lengths.sum() else math.nan


def _scores_of_reference(
    scored: Sequence[UtteranceScore], silent: Sequence[Transcript], against: Sequence[Transcript]
) -> list[UtteranceScore]:
    """Score the original's transcripts of the same utterances, each in the language it was scored in. Raises `DataError`."""
    theirs = {t.id: t for t in against if t.reference is not None}
    missing = [name for name in [*(u.id for u in scored), *(t.id for t in silent)] if name not in theirs]
    if missing:
        raise DataError(f"the original has no transcript of {first_of(missing)}")
    # Both in one language: a model that detects it may find another.
    other = [score_utterance(replace(theirs[u.id], language=u.language)) for u in scored]
    if other and all(o.empty for o in other):
        raise DataError(
            f"the original recognized no word in {len(other)} utterances with words, so a comparison with it proves nothing; "
            "check that its folder is whole, its tokenizer files above all, and that the language is right"
        )
    return other


def _compare(scored: Sequence[UtteranceScore], against: Sequence[UtteranceScore], metric: Metric, seed: int) -> Paired:
    before = {u.id: u for u in against}
    if missing := [u.id for u in scored if u.id not in before]:
        raise DataError(f"the original has no transcript of {first_of(missing)}")
    if changed := [u.id for u in scored if before[u.id].words != u.words]:
        raise DataError(f"the reference text of {changed[0]!r} differs between the two systems' transcripts")
    errors, lengths = _counts(scored, metric)
    more = errors - _counts([before[u.id] for u in scored], metric)[0]
    low, high = bootstrap_interval(more, lengths, seed=seed)
    better = tuple(u.id for u, change in zip(scored, more, strict=True) if change < 0)
    worse = tuple(u.id for u, change in zip(scored, more, strict=True) if change > 0)
    return Paired(
        difference=float(more.sum() / lengths.sum()),
        low=low,
        high=high,
        better=better,
        worse=worse,
        sign_test=sign_test(len(better), len(worse)),
    )


def score_to_dict(score: Score) -> Mapping[str, object]:
    """Convert a score to plain data without its utterances; rates in percent, null where there is none."""
    paired = score.paired
    return {
        "utterances": len(score.utterances),
        "metric": score.metric,
        "languages": list(score.languages),
        "decodings": list(score.decodings),
        "words": score.words,
        "characters": score.characters,
        "rate_percent": _percent(score.rate),
        "interval_percent": [_percent(score.low), _percent(score.high)],
        "wer_percent": _percent(score.wer),
        "capped_wer_percent": _percent(score.capped_wer),
        "cer_percent": _percent(score.cer),
        "capped_cer_percent": _percent(score.capped_cer),
        "substitutions": score.substitutions,
        "insertions": score.insertions,
        "deletions": score.deletions,
        **{failure: list(getattr(score, failure)) for failure in FAILURES},
        "silences": score.silences,
        "invented_words": score.invented_words,
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


def _percent(rate: float) -> float | None:
    return None if math.isnan(rate) else 100 * rate
