"""What the original says about each utterance: its transcripts, its decoder's states on them, and its encoder's states.

States stand for distributions: the original's head turns them into these when they are needed. Memory for each utterance: the encoder's
states where there is audio, and the decoder's, `d` float32 numbers a position.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sottovoce.errors import CalibrationError
from sottovoce.evaluation.failures import text_loops
from sottovoce.evaluation.kl_divergence import head_log_probabilities, hidden_states
from sottovoce.models.speech_model import SpeechModel
from sottovoce.models.whisper import SAMPLES_PER_POSITION
from sottovoce.quantization.calibration_set import CalibrationSpeech
from sottovoce.system.progress import Progress

TEMPERATURE = 0.8  # of sampled transcripts
SPARE_TOKENS = 8  # that a sampled transcript may have beyond its greedy one: loops of the original are nothing to learn


@dataclass(frozen=True, eq=False, kw_only=True)
class Lesson:
    """One utterance. `encoder_states` `[P, d]`: where there is audio. `transcripts`: greedy, then sampled ones; `states` `[T + 1, d]` of
    each. `loops`: whether the greedy one does."""

    id: str
    recording: np.ndarray
    language: str | None
    encoder_states: Tensor
    transcripts: tuple[tuple[int, ...], ...]
    states: tuple[Tensor, ...]
    loops: bool

    def log_probabilities(self, original: SpeechModel, which: int) -> Tensor:
        """Return the original's log-probabilities at every token of a transcript, `[T + 1, vocabulary]`."""
        with torch.no_grad():
            return head_log_probabilities(original, self.states[which])


@torch.no_grad()
def make_lessons(
    original: SpeechModel, speech: CalibrationSpeech, *, sampled: bool, seed: int, doing: str, progress: Progress
) -> list[Lesson]:
    """Let the original work through `speech`, whose transcripts are its own. `sampled`: also draw one transcript of each by `seed`.

    Raises `CalibrationError` if it hears no word in any of it.
    """
    if not any(speech.transcripts):
        raise CalibrationError(
            f"{original.source} hears no word in any of the {len(speech.ids)} utterances ({doing}), so they teach nothing; give speech"
        )
    lessons = list[Lesson]()
    for i, recording in enumerate(speech.recordings):
        progress(doing, i, len(speech.recordings))
        lessons.append(_lesson(original, speech, i, recording, _seed_of(seed, i) if sampled else None))
    progress(doing, len(lessons), len(lessons))
    return lessons


def _lesson(original: SpeechModel, speech: CalibrationSpeech, i: int, recording: np.ndarray, seed: int | None) -> Lesson:
    greedy, language = speech.transcripts[i], speech.languages[i]
    encoded = original.encode(original.features([recording]))
    transcripts = [greedy]
    if seed is not None:
        ((tokens, _),) = original.sample_decode(
            encoded, language, TEMPERATURE, seed=seed, max_new_tokens=max(1, len(greedy) + SPARE_TOKENS)
        )
        transcripts.append(tuple(tokens))
    states = [hidden_states(original, encoded, [tokens], language)[0] for tokens in transcripts]
    length = encoded.states.shape[1]
    if original.window_positions is not None:
        length = min(length, -(-len(recording) // SAMPLES_PER_POSITION))
    return Lesson(
        id=speech.ids[i],
        recording=recording,
        language=language,
        encoder_states=encoded.states[0, :length].clone(),
        transcripts=tuple(tuple(tokens) for tokens in transcripts),
        states=tuple(states),
        loops=text_loops(original.text(list(greedy)), language),
    )


def _seed_of(seed: int, utterance: int) -> int:
    return (seed * 1_000_003 + utterance) % 2**31


def token_count(lessons: Sequence[Lesson]) -> int:
    """Return the number of tokens of all greedy transcripts, end tokens included."""
    return sum(len(lesson.transcripts[0]) + 1 for lesson in lessons)
