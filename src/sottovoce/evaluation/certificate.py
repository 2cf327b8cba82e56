"""A certificate: how much worse a quantized model's transcripts can be on speech like this, with a stated confidence.

Every statement is a bound of `evaluation.bounds` on one loss of `evaluation.word_losses`. Shares are of utterances; means are over
utterances, over words (an utterance weighs as many words as it has, at most `MOST_WORDS`), or over speakers (each the mean of its
utterances, all of one weight).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sottovoce.errors import DataError, OutputError, RecipeError
from sottovoce.evaluation.bounds import betting_bound, clopper_pearson_bound, hoeffding_bentkus_bound
from sottovoce.evaluation.word_losses import UtteranceLosses
from sottovoce.system.atomic_files import written_whole
from sottovoce.system.outputs import FileKind, read_by
from sottovoce.system.plain_data import from_plain, to_plain

Loss = Literal["changed", "disagreement", "looped", "empty", "worse", "wer_increase"]
Unit = Literal["utterance", "word", "speaker"]

# Fixed for all certificates, so that it cannot be chosen by what the data show. A bound over words costs as many times more speech as this
# is longer than the usual utterance.
MOST_WORDS = 64
SHARES: tuple[Loss, ...] = ("changed", "looped", "empty", "worse")
LABELLED: tuple[Loss, ...] = ("worse", "wer_increase")
LOSSES: tuple[Loss, ...] = ("changed", "disagreement", "looped", "empty", *LABELLED)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """With the certificate's confidence, `loss` is at most `bound` on average over units like these `n`.

    `estimate`: its mean on this speech. `method`: "Clopper-Pearson" or "betting". `hoeffding_bentkus`: that bound beside it, None where it
    is not made. All are fractions: 0.02 is 2 utterances, or words, in 100.
    """

    loss: Loss
    unit: Unit
    n: int
    estimate: float
    bound: float
    method: Literal["Clopper-Pearson", "betting"]
    hoeffding_bentkus: float | None


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One source of the speech. `unnamed`: how many of its utterances name no speaker; `speakers`: how many speakers the others have."""

    name: str
    utterances: int
    seconds: float
    speakers: int
    unnamed: int
    changed: float
    disagreement: float


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What holds of the transcripts of one file.

    `checkpoint`, `digest`, `bytes`, `runtime`: the file that was run; `reference`: the model it is compared with; both by name, without the
    path to them. `confidence`: of each statement by itself. `seed`: of the order in which the losses were bet on. `speech`: digest of all
    recordings. `calibration`: whether the calibration speech was compared with this speech ("disjoint"), there was none ("none"), or it is
    not known ("unknown"); `shared_speakers`: names of speakers in both. `earlier_looks`: how many other settings had been tried on this
    speech before. `left_out`: recordings that could not be used, each with the reason. `chosen_among`: how many candidates stood to choice,
    if any did; `limits`: what the choice or the check demanded, by loss. `context`: of the file's encoder, as `--context` takes it.
    `reference_digest`: of the weights of `reference`; empty in certificates of earlier versions.
    """

    checkpoint: str
    digest: str
    bytes: int
    runtime: str
    reference: str
    confidence: float
    seed: int
    statements: tuple[Statement, ...]
    corpora: tuple[Corpus, ...]
    languages: tuple[str, ...]
    decodings: tuple[str, ...]
    speech: str
    calibration: Literal["disjoint", "none", "unknown"]
    shared_speakers: tuple[str, ...]
    earlier_looks: int
    environment: dict[str, str]
    left_out: dict[str, str]
    chosen_among: int | None = None
    limits: dict[Loss, float] | None = None
    context: str = "full"
    reference_digest: str = ""

    @property
    def utterances(self) -> int:
        """The number of utterances."""
        return sum(corpus.utterances for corpus in self.corpora)

    def statement(self, loss: Loss, unit: Unit = "utterance") -> Statement | None:
        """Return the statement about `loss` over `unit`, or None if there is none."""
        return next((s for s in self.statements if (s.loss, s.unit) == (loss, unit)), None)

    def exceeded(self, limits: Mapping[Loss, float]) -> tuple[Loss, ...]:
        """Return which of `limits` (by loss, fractions) the bounds over utterances exceed. Raises `DataError` for a loss without bound."""
        found = list[Loss]()
        for name, limit in limits.items():
            statement = self.statement(name)
            if statement is None:
                raise DataError(f"nothing is known of {name!r} here: it needs the texts that were spoken; give speech with texts")
            if statement.bound > limit:
                found.append(name)
        return tuple(found)


def make_statements(
    losses: Sequence[UtteranceLosses], speakers: Sequence[str | None], *, confidence: float = 0.95, seed: int = 0
) -> tuple[Statement, ...]:
    """Bound every loss over utterances, means over words too, and all over speakers where two or more are named.

    `speakers`: of each utterance, None where it is not known; those are left out of the bounds over speakers. `seed`: of the order of
    the bets on utterances and on speakers, which does not depend on the order of `losses`. Losses that need the spoken text are bounded
    on utterances that have one. Raises `RecipeError` for a confidence that is not between 0.5 and 1.
    """
    check_confidence(confidence)
    order = _order([row.id for row in losses], seed)
    rows = [losses[i] for i in order]
    named = [speakers[i] for i in order]
    # Not in the order in which they appear among the utterances: there, speakers with many utterances come first.
    people = list({speaker for speaker in named if speaker is not None})
    people = [people[i] for i in _order(people, seed)]
    delta = 1 - confidence
    statements = list[Statement]()
    for loss in LOSSES:
        known = [i for i, row in enumerate(rows) if loss not in LABELLED or row.reference_words is not None]
        if not known:
            continue
        values = np.array([_value(loss, rows[i]) for i in known], float)
        statements.append(_share(loss, values, delta) if loss in SHARES else _mean(loss, "utterance", values, delta))
        if loss in ("disagreement", "wer_increase"):
            words = np.array([rows[i].words if loss == "disagreement" else rows[i].reference_words or 0 for i in known], float)
            statements.append(_mean(loss, "word", values, delta, np.clip(words, 1, MOST_WORDS) / MOST_WORDS))
        by_speaker: dict[str, list[float]] = {speaker: [] for speaker in people}
        for i, value in zip(known, values, strict=True):
            if (speaker := named[i]) is not None:
                by_speaker[speaker].append(float(value))
        means = np.array([np.mean(own) for own in by_speaker.values() if own])
        if len(means) > 1:
            statements.append(_mean(loss, "speaker", means, delta))
    return tuple(statements)


def write_certificate(path: str | Path, certificate: Certificate) -> None:
    """Write a certificate as JSON, whole or not at all. Raises `OutputError`."""
    try:
        with written_whole(Path(path).expanduser().absolute()) as file:
            file.write(json.dumps(to_plain(certificate), indent=2, ensure_ascii=False) + "\n")
    except OSError as exc:
        raise OutputError(f"{path}: the certificate cannot be written ({exc})") from exc


def read_certificate(path: str | Path) -> Certificate:
    """Read a certificate from JSON. Raises `DataError` for anything that does not fit."""
    try:
        return from_plain(Certificate, json.loads(Path(path).expanduser().read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, DataError) as exc:
        raise DataError(f"{path}: is not a certificate ({exc})") from exc


CERTIFICATE = FileKind(title="a certificate", holds=read_by(read_certificate))


def check_confidence(confidence: float) -> None:
    """Raise `RecipeError` for a confidence that is not between 0.5 and 1."""
    if not 0.5 <= confidence < 1:
        raise RecipeError(f"a confidence of {confidence} is out of range; give a number from 0.5 to below 1, such as 0.95")


def _order(names: Sequence[str], seed: int) -> list[int]:
    """Return the positions of `names` in an order that depends on nothing but the names and the seed."""
    found = sorted(range(len(names)), key=names.__getitem__)
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


def _value(loss: Loss, row: UtteranceLosses) -> float:
    return float(row.increase if loss == "wer_increase" else getattr(row, loss))


def _share(loss: Loss, values: np.ndarray, delta: float) -> Statement:
    events = int(values.sum())
    return Statement(
        loss=loss,
        unit="utterance",
        n=len(values),
        estimate=events / len(values),
        bound=clopper_pearson_bound(events, len(values), delta),
        method="Clopper-Pearson",
        hoeffding_bentkus=hoeffding_bentkus_bound(values, delta),
    )


def _mean(loss: Loss, unit: Unit, values: np.ndarray, delta: float, weights: np.ndarray | None = None) -> Statement:
    """Bound a mean of values from 0 to 1, or of a WER increase, from -1 to 1, which is brought to 0 .. 1 and back.

    The bound of an increase is never below 0: that it falls is not what is certified.
    """
    signed = loss == "wer_increase"
    shifted = np.clip((values + 1) / 2 if signed else values, 0, 1)  # a mean of a speaker's values may round beyond
    weighed = np.ones_like(shifted) if weights is None else weights
    bound = float(betting_bound(shifted * weighed, delta, weights=weights, floor=0.5 if signed else 0.0))
    beside = None if weights is not None else hoeffding_bentkus_bound(shifted, delta)
    if signed:
        bound, beside = 2 * bound - 1, None if beside is None else max(0.0, 2 * beside - 1)
    return Statement(
        loss=loss,
        unit=unit,
        n=len(values),
        estimate=float((values * weighed).sum() / weighed.sum()),
        bound=bound,
        method="betting",
        hoeffding_bentkus=beside,
    )
