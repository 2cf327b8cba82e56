"""A model on a data set in one pass: its transcripts, and how far its token distributions are from a reference model's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.data.dataset import DataSet
from sottovoce.errors import DataError
from sottovoce.evaluation.kl_divergence import hidden_states, token_divergence
from sottovoce.evaluation.recognize import recognize_batches
from sottovoce.evaluation.recognizer import Recognition, TorchRecognizer
from sottovoce.evaluation.transcribe import DECODER_BATCH, transcript_of
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.models.batching import Encoded
from sottovoce.models.speech_model import SpeechModel

PROBABILITY_DIGITS = 5  # after the point, of log-probabilities as they are stored


@dataclass(frozen=True, eq=False)
class TeacherForcedOutput:
    """Transcripts in the order of the data, and the decoder's states `[n_tokens + 1, d]` on the *reference's* transcripts."""

    transcripts: tuple[Transcript, ...]
    states: tuple[Tensor, ...]

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        """Return the transcripts' tokens."""
        return [transcript.tokens for transcript in self.transcripts]


class TeacherForcedEvaluator:
    """The recordings of a data set, read once for many models of one family.

    Raises `DataError` for an utterance that has a language of its own or is longer than one forward pass of `model`, and `AudioError` for
    one that cannot be used.
    """

    def __init__(self, model: SpeechModel, data: DataSet) -> None:
        self.data = data
        self._recordings = list[np.ndarray]()
        for utterance in data:
            if utterance.language:
                raise DataError(f"{utterance.id}: has a language of its own; a bench takes sets of one language, named in its recipe")
            samples = utterance.samples()
            if len(samples) > model.max_duration_s * SAMPLE_RATE:
                raise DataError(
                    f"{utterance.id}: {len(samples) / SAMPLE_RATE:.1f} s is longer than the {model.max_duration_s:.0f} s of one "
                    "forward pass; a bench compares token for token, so it wants shorter utterances"
                )
            self._recordings.append(samples)

    @torch.no_grad()
    def evaluate(self, model: SpeechModel, language: str | None, forced: Sequence[Sequence[int]] | None = None) -> TeacherForcedOutput:
        """Transcribe the data with `model`, and take its decoder's states on the transcripts `forced` (its own if omitted).

        `forced`: the reference's token ids, one row per utterance in the order of the data.
        """
        recognizer = _ForcedRecognizer(model, forced)
        transcripts = list[Transcript]()
        recordings = [partial(np.asarray, samples) for samples in self._recordings]
        for batch in recognize_batches(recognizer, recordings, [language] * len(self.data), DECODER_BATCH, confidence=True):
            for recording in batch.recordings:
                transcript = transcript_of(self.data.utterances[recording.index], recording, language)
                stored = tuple(min(0.0, round(p, PROBABILITY_DIGITS)) for p in transcript.log_probabilities)
                transcripts.append(replace(transcript, log_probabilities=stored))
        return TeacherForcedOutput(tuple(transcripts), tuple(recognizer.states))


class _ForcedRecognizer(TorchRecognizer):
    """Also collects the decoder's states on `forced` transcripts (its own if None), recording by recording."""

    def __init__(self, model: SpeechModel, forced: Sequence[Sequence[int]] | None) -> None:
        super().__init__(model)
        self._forced, self.states = forced, list[Tensor]()

    def recognize_encoded(self, encoded: Encoded, language: str | None, *, confidence: bool = False) -> list[Recognition]:
        recognitions = super().recognize_encoded(encoded, language, confidence=confidence)
        start = len(self.states)
        own = [recognition.tokens for recognition in recognitions]
        wanted = own if self._forced is None else self._forced[start : start + len(own)]
        self.states += hidden_states(self.model, encoded, wanted, language)
        return recognitions


def divergence_of_outputs(
    reference_model: SpeechModel, reference: TeacherForcedOutput, model: SpeechModel, output: TeacherForcedOutput
) -> Tensor:
    """Return the Kullback-Leibler divergence from the reference at every token of its transcripts, in nats; `[n_tokens]`."""
    return token_divergence(reference_model, reference.states, model, output.states)
