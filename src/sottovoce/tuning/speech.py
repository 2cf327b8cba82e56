"""The speech of tuning in two folds without a speaker in common: one to train on, one to look at."""

from dataclasses import dataclass, replace

from sottovoce.data.augment import source_ids
from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.errors import CalibrationError
from sottovoce.quantization.pipeline import CalibrationRecord

LEAST = 2  # utterances of a fold
LARGEST_SHARE = 4  # at most every fourth utterance is held out


@dataclass(frozen=True)
class Folds:
    """Utterances to train on and to look at. `calibrated_on`: how many of the latter the codes were calibrated on."""

    training: DataSet
    held_out: DataSet
    calibrated_on: int


def split(drawn: DataSet, utterances: int, held_out: int, calibration: CalibrationRecord | None) -> Folds:
    """Hold out `held_out` utterances, at most a fourth of all, and train on `utterances` of those by other speakers.

    Utterances that the codes were not calibrated on are held out first, since looks at the others flatter the start. One without a known
    speaker stands for itself. Raises `CalibrationError` if a fold has less than two.
    """
    used_names = {name for own in calibration.utterances for name in source_ids(own)} if calibration else set()
    used_speakers = set(calibration.speakers) if calibration else set()

    def used(utterance: Utterance) -> bool:
        return utterance.id in used_names or utterance.speaker in used_speakers

    wanted = max(LEAST, min(held_out, len(drawn) // LARGEST_SHARE))
    taken = sorted(drawn, key=used)[:wanted]  # a stable order: as drawn
    names, speakers = {utterance.id for utterance in taken}, {utterance.speaker for utterance in taken} - {None}
    left = [utterance for utterance in drawn if utterance.id not in names and utterance.speaker not in speakers]
    if len(taken) < LEAST or len(left) < LEAST:
        raise CalibrationError(
            f"{drawn.name}: of {len(drawn)} utterances {len(taken)} are held out to look at, and {len(left)} by other speakers remain to "
            f"train on; at least {LEAST} of each are needed: give more speech, by more speakers"
        )
    return Folds(
        replace(drawn, name=f"{drawn.name}, to train on", utterances=tuple(left[:utterances])),
        replace(drawn, name=f"{drawn.name}, held out", utterances=tuple(taken)),
        sum(map(used, taken)),
    )
