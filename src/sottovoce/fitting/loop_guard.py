"""The last check of a fit: long recordings are decoded, and none may loop that does not with the original.

Low bits make loops before they change the KL much: a loop is one rare event of a long decode, which teacher forcing never sees. So the
check decodes for real. A new loop takes the encoder unit that costs most out of its format: no entry as small may be chosen again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sottovoce.evaluation.failures import text_loops
from sottovoce.evaluation.recognizer import TorchRecognizer
from sottovoce.models.batching import batches_by_language
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import CalibrationSpeech
from sottovoce.quantization.schedule import PricedUnit
from sottovoce.system.progress import Progress

BATCH = 8  # utterances


@dataclass(frozen=True, eq=False, kw_only=True)
class GuardSpeech:
    """Recordings to decode: 16 kHz, with their names, and their languages; those whose original transcript loops are not among them."""

    ids: tuple[str, ...] = ()
    recordings: tuple[np.ndarray, ...] = ()
    languages: tuple[str | None, ...] = ()


def longest(model: SpeechModel, speech: Sequence[CalibrationSpeech], count: int) -> GuardSpeech:
    """Return the `count` longest recordings of `speech` whose transcripts, by the original `model`, do not loop."""
    found = [
        (one.ids[i], one.recordings[i], one.languages[i])
        for one in speech
        for i, transcript in enumerate(one.transcripts)
        if not text_loops(model.text(list(transcript)), one.languages[i])
    ]
    found.sort(key=lambda entry: (-len(entry[1]), entry[0]))
    ids, recordings, languages = zip(*found[:count], strict=True) if found[:count] else ((), (), ())
    return GuardSpeech(ids=ids, recordings=recordings, languages=languages)


def new_loops(model: SpeechModel, speech: GuardSpeech, progress: Progress) -> tuple[str, ...]:
    """Return the ids of the recordings whose greedy transcript by `model` loops."""
    recognizer, looped = TorchRecognizer(model), list[str]()
    batches = list(batches_by_language(range(len(speech.ids)), speech.languages, BATCH if model.fixed_length else 1))
    for n, rows in enumerate(batches):
        progress("listening for loops", n, len(batches))
        heard = recognizer.recognize([speech.recordings[i] for i in rows], speech.languages[rows[0]]).recognitions
        looped += [speech.ids[i] for i, one in zip(rows, heard, strict=True) if text_loops(one.text, one.language)]
    progress("listening for loops", len(batches), len(batches))
    return tuple(sorted(looped))


def without_costliest(units: Sequence[PricedUnit], entries: Sequence[int]) -> tuple[list[PricedUnit], str] | None:
    """Return the units with a larger least size for the encoder unit of the largest loss, and its name; None if none can grow."""
    growing = [
        i
        for i, (unit, entry) in enumerate(zip(units, entries, strict=True))
        if unit.unit.layers[0].part == "encoder" and _larger(unit, entry)
    ]
    if not growing:
        return None
    costliest = max(growing, key=lambda i: units[i].losses[entries[i]])
    raised = list(units)
    raised[costliest] = replace(units[costliest], least_bytes=min(_larger(units[costliest], entries[costliest])))
    return raised, units[costliest].unit.name


def _larger(unit: PricedUnit, entry: int) -> list[int]:
    """The sizes of the entries that are larger and lose less."""
    return [size for size, loss in zip(unit.unit.bytes, unit.losses, strict=True)
            if size > unit.unit.bytes[entry] and loss < unit.losses[entry]]  # fmt: skip
