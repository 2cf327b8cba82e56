"""What turns recordings into words: a model in PyTorch, or a file in one of the runtimes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from sottovoce.evaluation.kl_divergence import hidden_states, token_log_probabilities
from sottovoce.models.batching import Encoded, batches_by_language
from sottovoce.models.speech_model import SpeechModel

ENCODER_BATCH = 8  # utterances; more does not make the encoder faster on a CPU


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """What was heard in one recording. `tokens` are without prompt and end token; `ended`: the end token came before the limit."""

    text: str
    tokens: tuple[int, ...]
    ended: bool
    log_probabilities: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RecognitionBatch:
    """One recognition for each recording, and the seconds that encoder (with features) and decoder took.

    A runtime that does not tell them apart counts all as the decoder's.
    """

    recognitions: list[Recognition]
    encoder_s: float
    decoder_s: float


class Recognizer(Protocol):
    """`source`: what it was loaded from. `max_duration_s`: seconds of one forward pass. `stored_bytes`: size of the weights on disk."""

    source: str
    max_duration_s: float

    @property
    def stored_bytes(self) -> int: ...

    def recognize(self, recordings: Sequence[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        """Recordings of 16 kHz, none longer than `max_duration_s`. `confidence`: with log-probabilities, where there are any."""

    def recognize_long(self, recording: np.ndarray, language: str | None) -> Recognition | None:
        """A recording of any length by a procedure of the model's own, or None if it has none."""


class TorchRecognizer:
    """A model in PyTorch: greedy, with its own prompt and suppression rules."""

    def __init__(self, model: SpeechModel) -> None:
        self.model, self.source, self.max_duration_s = model, model.source, model.max_duration_s

    @property
    def stored_bytes(self) -> int:
        """The weights on disk, or as float16 would be where they lie elsewhere."""
        files = list(Path(self.source).expanduser().glob("*.safetensors"))
        if files:
            return sum(file.stat().st_size for file in files)
        return sum(2 * parameter.numel() for parameter in self.model.network.parameters())

    @torch.no_grad()
    def recognize(self, recordings: Sequence[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        model = self.model
        began = time.perf_counter()
        encoded = Encoded.joined(
            [model.encode(model.features(recordings[i : i + ENCODER_BATCH])) for i in range(0, len(recordings), ENCODER_BATCH)]
        )
        between = time.perf_counter()
        decoded, languages = model.decode_by_language(encoded, language)
        probabilities: list[tuple[float, ...]] = [()] * len(decoded)
        for rows in batches_by_language(range(len(decoded)), languages, len(decoded)) if confidence else ():
            found = self._probabilities(encoded[rows], [decoded[i][0] for i in rows], languages[rows[0]])
            for i, row in zip(rows, found, strict=True):
                probabilities[i] = row
        recognitions = [
            Recognition(text=model.text(tokens), tokens=tuple(tokens), ended=ended, log_probabilities=row)
            for (tokens, ended), row in zip(decoded, probabilities, strict=True)
        ]
        return RecognitionBatch(recognitions=recognitions, encoder_s=between - began, decoder_s=time.perf_counter() - between)

    def recognize_long(self, recording: np.ndarray, language: str | None) -> Recognition | None:
        found = self.model.decode_long(recording, language)
        if found is None:
            return None
        tokens, ended = found
        return Recognition(text=self.model.text(tokens), tokens=tuple(tokens), ended=ended)

    def _probabilities(self, encoded: Encoded, transcripts: list[list[int]], language: str | None) -> list[tuple[float, ...]]:
        """Log-probability of each token of each transcript, by one more pass of the decoder."""
        states = hidden_states(self.model, encoded, transcripts, language)
        return [
            tuple(token_log_probabilities(self.model, state, tokens).clamp(max=0).tolist())
            for state, tokens in zip(states, transcripts, strict=True)
        ]
