"""What the network hears at once: a recording, or several that fill its window.

Whisper encodes 30 seconds whatever the length of a recording. Recordings that fill a window together take one pass in place of several, and
the model is calibrated on positions that short recordings leave empty. The others keep what a single recording is like.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.data.folds import assign_folds
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import CalibrationSpeech

PAUSE_S = 0.25  # of silence between two recordings
FILLED = 0.95  # of a window, at most: after the last word there is an end, as in a recording of its own


@dataclass(frozen=True, eq=False, kw_only=True)
class Windows:
    """Speech as it goes through the network, one entry for each window.

    `samples`: float32 `[n_samples]` at 16 kHz. `transcripts`: token ids, prompt and end token not included. `folds`: 0 or 1. `names`: ids
    of the recordings, with a plus between them.
    """

    samples: tuple[np.ndarray, ...]
    transcripts: tuple[tuple[int, ...], ...]
    folds: tuple[int, ...]
    languages: tuple[str | None, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def first(self, of_each_fold: int) -> "Windows":
        """Return the first windows of each fold, at most `of_each_fold`."""
        rows = [i for fold in (0, 1) for i in [k for k, own in enumerate(self.folds) if own == fold][:of_each_fold]]
        return Windows(
            samples=tuple(self.samples[i] for i in rows),
            transcripts=tuple(self.transcripts[i] for i in rows),
            folds=tuple(self.folds[i] for i in rows),
            languages=tuple(self.languages[i] for i in rows),
            names=tuple(self.names[i] for i in rows),
        )


def make_windows(model: SpeechModel, speech: CalibrationSpeech, *, joined: float) -> Windows:
    """Make the windows of prepared speech, in folds by speaker.

    `joined`: share of the recordings of each fold, 0 to 1, that fill windows, if those of `model` have a fixed length: each goes to the
    first window of its fold and language where it has room, and the tokens of the transcripts too.
    """
    folds = assign_folds(speech.speakers)
    share, seen, alone, filling = joined if model.fixed_length else 0.0, [0, 0], list[int](), list[int]()
    for i, fold in enumerate(folds):
        (filling if int(share * (seen[fold] + 1)) > int(share * seen[fold]) else alone).append(i)
        seen[fold] += 1
    windows = sorted([*([i] for i in alone), *_filled(model, speech, folds, filling)])
    return Windows(
        samples=tuple(_samples([speech.recordings[i] for i in rows]) for rows in windows),
        transcripts=tuple(tuple(token for i in rows for token in speech.transcripts[i]) for rows in windows),
        folds=tuple(folds[rows[0]] for rows in windows),
        languages=tuple(speech.languages[rows[0]] for rows in windows),
        names=tuple("+".join(speech.ids[i] for i in rows) for rows in windows),
    )


def _filled(model: SpeechModel, speech: CalibrationSpeech, folds: Sequence[int], which: Sequence[int]) -> list[list[int]]:
    """Numbers of the recordings of each window that those in `which` fill."""
    longest, pause = int(FILLED * model.max_duration_s * SAMPLE_RATE), int(PAUSE_S * SAMPLE_RATE)
    windows, room, tokens_left = list[list[int]](), list[int](), list[int]()
    for i in which:
        samples, transcript = speech.recordings[i], speech.transcripts[i]
        kind = (folds[i], speech.languages[i])
        for k, rows in enumerate(windows):
            same = kind == (folds[rows[0]], speech.languages[rows[0]])
            if same and len(samples) + pause <= room[k] and len(transcript) <= tokens_left[k]:
                break
        else:
            k = len(windows)
            windows.append([])
            room.append(longest + pause)
            tokens_left.append(model.max_new_tokens(speech.languages[i]))
        windows[k].append(i)
        room[k] -= len(samples) + pause
        tokens_left[k] -= len(transcript)
    return windows


def _samples(recordings: Sequence[np.ndarray]) -> np.ndarray:
    """Recordings one after the other, a pause between two."""
    if len(recordings) == 1:
        return recordings[0]
    pause = np.zeros(int(PAUSE_S * SAMPLE_RATE), np.float32)
    return np.concatenate([part for samples in recordings for part in (pause, samples)][1:])
