"""Utterances on which models are compared with a reference token for token: its own transcripts, its own distributions.

Decoders get the reference's greedy transcripts (teacher forcing), so all models are asked for the same tokens. Memory: the reference's
log-probabilities, `n_tokens x vocabulary` float32, and the encoder outputs of one model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sottovoce.errors import DataError
from sottovoce.evaluation.kl_divergence import head_log_probabilities, hidden_states, token_kl
from sottovoce.models.batching import Encoded, batches_by_language
from sottovoce.models.speech_model import SpeechModel
from sottovoce.system.devices import in_float64

BATCH = 8  # utterances


@dataclass(frozen=True, eq=False)
class _Batch:
    features: dict[str, Tensor]
    transcripts: list[Sequence[int]]
    language: str | None


class HeldOutSpeech:
    """Prepared utterances, and the distributions of a reference model at every token of its transcripts.

    `n_tokens`: end tokens included. `utterance` `[n_tokens]`: the number of the utterance that each token is of, in batch order.
    """

    @torch.no_grad()
    def __init__(
        self,
        reference: SpeechModel,
        recordings: Sequence[np.ndarray],
        transcripts: Sequence[Sequence[int]],
        languages: Sequence[str | None],
    ) -> None:
        """`transcripts`: token ids. Raises `DataError` if there is no utterance."""
        if not recordings:
            raise DataError("there is no held-out speech to compare models on; give more recordings")
        self._batches = [
            _Batch(reference.features([recordings[i] for i in rows]), [transcripts[i] for i in rows], languages[rows[0]])
            for rows in batches_by_language(range(len(recordings)), languages, BATCH)
        ]
        lengths = [len(transcript) + 1 for batch in self._batches for transcript in batch.transcripts]
        self.utterance = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self.log_p = self.log_probabilities(reference, self.states(reference, self.encode(reference)))
        if len(self.log_p) != len(self.utterance):  # a transcript that is longer than the decoder takes
            raise DataError("a held-out transcript is longer than the model takes; leave that recording out")

    @property
    def n_utterances(self) -> int:
        """How many utterances there are."""
        return sum(len(batch.transcripts) for batch in self._batches)

    @property
    def n_tokens(self) -> int:
        """How many tokens are compared."""
        return len(self.log_p)

    @torch.no_grad()
    def encode(self, model: SpeechModel) -> list[Encoded]:
        """Return the encoder outputs, batch by batch."""
        return [model.encode(batch.features) for batch in self._batches]

    @torch.no_grad()
    def states(self, model: SpeechModel, encoded: Sequence[Encoded]) -> Tensor:
        """Return the head's inputs at every token, `[n_tokens, d]`."""
        found = list[Tensor]()
        for batch, outputs in zip(self._batches, encoded, strict=True):
            found += hidden_states(model, outputs, batch.transcripts, batch.language)
        return torch.cat(found)

    @torch.no_grad()
    def log_probabilities(self, model: SpeechModel, states: Tensor) -> Tensor:
        """Return the log-probabilities at the head's inputs `[n_tokens, d]`; `[n_tokens, vocabulary]`."""
        return head_log_probabilities(model, states)

    @torch.no_grad()
    def divergence(self, log_q: Tensor) -> Tensor:
        """Return KL(reference || q) in nats at every token, `[n_tokens]`."""
        return token_kl(self.log_p, log_q)

    def mean_divergence(self, model: SpeechModel) -> float:
        """Return the mean over the tokens of KL(reference || model), in nats."""
        log_q = self.log_probabilities(model, self.states(model, self.encode(model)))
        return float(in_float64(self.divergence(log_q)).mean())


@torch.no_grad()
def half_variance(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return half the variance under p of `log q - log p` at every token: KL to second order; `[n_tokens]`."""
    change, p = log_q - log_p, log_p.exp()
    mean = (p * change).sum(-1)
    return 0.5 * ((p * change.square()).sum(-1) - mean.square())
