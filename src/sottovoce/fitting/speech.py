"""The speech of a fit: what to calibrate on, and what to measure on, without a speaker in common."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sottovoce.data.dataset import DataSet
from sottovoce.errors import CalibrationError
from sottovoce.evaluation.held_out import HeldOutSpeech
from sottovoce.fitting.loop_guard import GuardSpeech, longest
from sottovoce.fitting.word_goal import WordGoal, word_goal
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import CalibrationSpeech, prepare_speech
from sottovoce.quantization.run_state import RunState
from sottovoce.system.progress import Progress

FOLDS = ("losses", "swaps", "report")  # what the held-out utterances are for: no choice sees the last
LEAST_CALIBRATION = 2  # utterances


@dataclass(frozen=True, eq=False)
class FitSpeech:
    """`calibration`: to quantize with; `held_out`: by fold, with the original's distributions. `guard`: to listen to for loops. `words`: to
    count errors on, where their number is the goal. `chosen_on`: hashes of the held-out recordings by which formats are chosen."""

    calibration: CalibrationSpeech
    held_out: dict[str, HeldOutSpeech]
    guard: GuardSpeech
    words: WordGoal | None = None
    chosen_on: tuple[str, ...] = ()


def split(drawn: DataSet, utterances: int, held_out: int) -> tuple[DataSet, dict[str, DataSet]]:
    """Take `held_out` utterances of `drawn` for each fold, and of the rest `utterances` for calibration.

    A known speaker is in one of them only. Raises `CalibrationError` if too few remain to calibrate on.
    """
    folds = dict[str, DataSet]()
    left = list(drawn)
    for name in FOLDS:
        taken, left = left[:held_out], left[held_out:]
        speakers = {utterance.speaker for utterance in taken} - {None}
        left = [utterance for utterance in left if utterance.speaker not in speakers]
        folds[name] = DataSet(f"{drawn.name}, held out for {name}", tuple(taken))
    if len(left) < LEAST_CALIBRATION or not folds[FOLDS[-1]].utterances:
        raise CalibrationError(
            f"{drawn.name}: {len(drawn)} utterances; {len(FOLDS)} x {held_out} are held out to measure on, and {len(left)} of other "
            f"speakers remain to calibrate on, at least {LEAST_CALIBRATION} are needed: give more speech, or a smaller --held-out"
        )
    return replace(drawn, utterances=tuple(left[:utterances])), folds


def prepare(
    model: SpeechModel,
    calibration: DataSet,
    folds: dict[str, DataSet],
    *,
    guarded: int,
    max_wer_increase: float | None,
    language: str | None,
    state: RunState,
    progress: Progress,
) -> FitSpeech:
    """Read and transcribe all of it. Transcripts that `state` has are not made again.

    `guarded`: how many recordings are listened to for loops, the longest of all but those of the report. `max_wer_increase`: in points;
    None if words are not the goal, and texts are not needed.
    """
    words = None if max_wer_increase is None else word_goal(model, max_wer_increase, folds, language=language, progress=progress)
    prepared = {
        name: prepare_speech(model, data, language=language, state=state, least=1, progress=progress) for name, data in folds.items()
    }
    taught = prepare_speech(model, calibration, language=language, state=state, progress=progress)
    return FitSpeech(
        taught,
        {name: _held_out(model, speech) for name, speech in prepared.items()},
        longest(model, [taught, *(prepared[name] for name in FOLDS[:-1])], guarded),
        words,
        tuple(digest for name in FOLDS[:-1] for digest in prepared[name].hashes),
    )


def held_out_speech(model: SpeechModel, data: DataSet, *, language: str | None, progress: Progress) -> HeldOutSpeech:
    """Read `data` and transcribe it with `model`, whatever was really said."""
    return _held_out(model, prepare_speech(model, data, language=language, state=RunState(), least=1, progress=progress))


def _held_out(model: SpeechModel, speech: CalibrationSpeech) -> HeldOutSpeech:
    transcripts: Sequence[Sequence[int]] = speech.transcripts
    return HeldOutSpeech(model, speech.recordings, transcripts, speech.languages)
