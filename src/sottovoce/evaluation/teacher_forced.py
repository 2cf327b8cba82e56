"""A model on a data set in one pass: what it transcribes, and how far its token distributions are from a reference model's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.data.dataset import DataSet
from sottovoce.errors import DataError
from sottovoce.evaluation.kl_divergence import hidden_states, token_divergence, token_log_probabilities
from sottovoce.evaluation.recognizer import ENCODER_BATCH
from sottovoce.evaluation.transcribe import DECODER_BATCH
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.models.batching import Encoded
from sottovoce.models.speech_model import SpeechModel

PROBABILITY_DIGITS = 5  # after the point, of log-probabilities as they are stored


@dataclass(frozen=True, eq=False)
class TeacherForcedOutput:
    """Transcripts in the order of the data, and the decoder's states at each token of the *reference's* transcripts."""

    transcripts: tuple[Transcript, ...]
    states: tuple[Tensor, ...]

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        """The transcripts' tokens."""
        return [transcript.tokens for transcript in self.transcripts]


class TeacherForcedEvaluator:
    """Audio features of a data set, computed once for many models of one family."""

    def __init__(self, model: SpeechModel, data: DataSet) -> None:
        self.data = data
        self._batches = []
        for start in range(0, len(data), DECODER_BATCH):
            utterances = data.utterances[start : start + DECODER_BATCH]
            if own := [utterance.id for utterance in utterances if utterance.language]:
                raise DataError(f"{own[0]}: has a language of its own; a bench takes sets of one language, named in its recipe")
            samples = [utterance.samples() for utterance in utterances]
            for utterance, recording in zip(utterances, samples, strict=True):
                if len(recording) > model.max_duration_s * SAMPLE_RATE:
                    raise DataError(
                        f"{utterance.id}: {len(recording) / SAMPLE_RATE:.1f} s is longer than the {model.max_duration_s:.0f} s of one "
                        "forward pass; a bench compares token for token, so it wants shorter utterances"
                    )
            features = [model.features(samples[i : i + ENCODER_BATCH]) for i in range(0, len(samples), ENCODER_BATCH)]
            self._batches.append((utterances, [len(recording) / SAMPLE_RATE for recording in samples], features))

    @torch.no_grad()
    def listen(self, model: SpeechModel, language: str | None, forced: Sequence[Sequence[int]] | None = None) -> TeacherForcedOutput:
        """`forced`: the reference's transcripts, on which the states are taken; its own if omitted."""
        transcripts, states, start = list[Transcript](), list[Tensor](), 0
        for utterances, durations, features in self._batches:
            encoded = Encoded.joined([model.encode(piece) for piece in features])
            decoded = model.greedy_decode(encoded, language)
            wanted = [row for row, _ in decoded] if forced is None else list(forced[start : start + len(utterances)])
            states += hidden_states(model, encoded, wanted, language)
            own = hidden_states(model, encoded, [row for row, _ in decoded], language)
            for utterance, duration, (tokens, ended), state in zip(utterances, durations, decoded, own, strict=True):
                probabilities = token_log_probabilities(model, state, tokens).tolist()
                transcripts.append(
                    Transcript(
                        id=utterance.id,
                        text=model.text(tokens),
                        tokens=tuple(tokens),
                        duration_s=duration,
                        reference=utterance.text,
                        truncated=not ended,
                        log_probabilities=tuple(min(0.0, round(p, PROBABILITY_DIGITS)) for p in probabilities),
                    )
                )
            start += len(utterances)
        return TeacherForcedOutput(tuple(transcripts), tuple(states))


def divergence(reference_model: SpeechModel, reference: TeacherForcedOutput, model: SpeechModel, heard: TeacherForcedOutput) -> Tensor:
    """Kullback-Leibler divergence from the reference at every token of its transcripts, in nats; `[n_tokens]`."""
    return token_divergence(reference_model, reference.states, model, heard.states)
