"""A fit by words: how large the divergence may be so that the word error rate of labelled, held-out speech rises by no more than asked.

A schedule is solved for a bound on the KL. The word error rate rises with the KL, but no formula gives it: so bounds are tried, each the
last times the wanted over the measured increase, and the smallest file that kept the wanted increase is taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sottovoce.data.dataset import DataSet
from sottovoce.errors import CalibrationError, RecipeError
from sottovoce.evaluation.transcribe import transcribe_data
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import Paired, score_transcripts
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.fit_record import WordIncrease
from sottovoce.system.progress import Progress

START_KL = 0.05  # nats per token: of the first schedule
STEP = (0.25, 4.0)  # factor between two bounds, least and most
ENOUGH = 0.7  # of the wanted increase: a schedule that uses this share of it is not enlarged any more


@dataclass(frozen=True, eq=False, kw_only=True)
class WordGoal:
    """At most `points` more in 100 words on `choice`; `report`: other speech, on which the outcome is measured. `original`: its transcripts
    of both, by name of the data set."""

    points: float
    choice: DataSet
    report: DataSet
    original: Mapping[str, tuple[Transcript, ...]]
    language: str | None = None

    def increase(self, model: SpeechModel, data: DataSet, progress: Progress) -> WordIncrease:
        """Transcribe `data` with `model` and return how much more its error rate is than the original's."""
        transcripts = transcribe_data(model, data, language=self.language, progress=progress).transcripts
        score = score_transcripts(transcripts, self.original[data.name], language=self.language)
        paired = score.paired
        assert isinstance(paired, Paired)  # noqa: S101 - the original was given
        return WordIncrease(
            points=100 * paired.difference,
            low=100 * paired.low,
            high=100 * paired.high,
            original_rate=100 * (score.rate - paired.difference),
            metric=score.metric,
            utterances=len(transcripts),
        )

    def next_bound(self, bound: float, loss: float, increase: float) -> float | None:
        """Return the bound on the KL to try after `bound`, whose schedule raised the error rate by `increase` points; None: near enough.

        `loss`: predicted for that schedule, in nats; where formats are few it is far below the bound, and a bound above it would give
        the same schedule again.
        """
        if ENOUGH * self.points <= increase <= self.points:
            return None
        least, most = STEP
        factor = most if increase <= 0 else self.points / increase
        if increase > self.points:
            factor *= ENOUGH  # below the goal, or nearly the same schedule would come again
            bound = min(bound, loss)
        return bound * min(max(factor, least), most)


def word_goal(model: SpeechModel, points: float, folds: Mapping[str, DataSet], *, language: str | None, progress: Progress) -> WordGoal:
    """Transcribe the held-out speech with the original `model`. The fold "report" is kept for the report, the others for the choice.

    Raises `RecipeError` if an utterance has no reference text, `CalibrationError` if the original recognizes no word.
    """
    *choice, report = folds.values()
    chosen = DataSet("held out to count words", tuple(utterance for fold in choice for utterance in fold))
    missing = [utterance.id for data in (chosen, report) for utterance in data if utterance.text is None]
    if missing:
        raise RecipeError(
            f"{len(missing)} held-out utterances have no reference text, {missing[0]} for one, and a bound on the word error rate is "
            "counted against texts; give speech with transcripts, or a bound on the KL (--max-kl)"
        )
    original = {data.name: transcribe_data(model, data, language=language, progress=progress).transcripts for data in (chosen, report)}
    for name, transcripts in original.items():
        if not any(transcript.text.strip() for transcript in transcripts):
            raise CalibrationError(f"{name}: the original recognizes no word, so an increase of errors means nothing; give other speech")
    return WordGoal(points=points, choice=chosen, report=report, original=original, language=language)
