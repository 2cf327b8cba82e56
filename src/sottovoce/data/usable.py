"""Recordings in memory: all of a data set that can be used, and why the others cannot."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sottovoce.data.audio import SILENCE
from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.errors import AudioError


@dataclass(frozen=True, eq=False, kw_only=True)
class Recordings:
    """Utterances and their samples, 16 kHz mono float32, in the order of the data. `left_out`: the others' ids, each with the reason."""

    utterances: tuple[Utterance, ...]
    samples: tuple[np.ndarray, ...]
    left_out: Mapping[str, str]


def read_usable(data: DataSet) -> Recordings:
    """Read all recordings of `data` that can be calibrated on. Silence cannot, even where it is known that nothing is said."""
    utterances, samples, left_out = list[Utterance](), list[np.ndarray](), dict[str, str]()
    for utterance in data:
        try:
            read = utterance.samples()
            if np.abs(read).max() < SILENCE:
                raise AudioError(f"{utterance.id}: is silent, which calibrates nothing")
        except AudioError as exc:
            left_out[utterance.id] = str(exc)
            continue
        utterances.append(utterance)
        samples.append(read)
    return Recordings(utterances=tuple(utterances), samples=tuple(samples), left_out=left_out)
