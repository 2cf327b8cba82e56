"""The seam between recordings and words: a model in PyTorch, or a file in one of the runtimes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
import torch

from sottovoce.errors import ModelError
from sottovoce.evaluation.kl_divergence import hidden_states, token_log_probabilities
from sottovoce.models.batching import Encoded, batches_by_language
from sottovoce.models.speech_model import SpeechModel

ENCODER_BATCH = 8  # utterances; more does not make the encoder faster on a CPU


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The hypothesis for one recording.

    `tokens`: ids without prompt and end token. `ended`: the end token came before the token limit. `log_probabilities`: natural, one per
    token, or empty if they were not asked for. `language`: the code it was decoded in, found by the model where it was asked to detect it;
    None if nobody named or found one.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool
    log_probabilities: tuple[float, ...] = ()
    language: str | None = None


@dataclass(frozen=True, kw_only=True)
class RecognitionBatch:
    """One recognition for each recording, and the seconds that encoder (with features) and decoder took.

    A runtime that does not tell them apart counts all as the decoder's.
    """

    recognitions: list[Recognition]
    encoder_s: float
    decoder_s: float


class Recognizer(Protocol):
    """Recognize the words in recordings.

    `source`: what it was loaded from. `max_duration_s`: seconds of audio that one forward pass takes. `stored_bytes`: size of the weights
    on disk.
    """

    source: str
    max_duration_s: float

    @property
    def stored_bytes(self) -> int: ...

    def recognize(self, recordings: Sequence[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        """Recognize recordings: float32 `[n_samples]` at 16 kHz, none longer than `max_duration_s`.

        `confidence`: also give log-probabilities, where the runtime has them.
        """

    def recognize_long(self, recording: np.ndarray, language: str | None) -> Recognition | None:
        """Recognize a recording of any length by a procedure of the model's own; return None if it has none."""

    def split_words(self, tokens: Sequence[int], values: Sequence[float]) -> list[tuple[str, list[float]]]:
        """Split a hypothesis into words, each with the values of its tokens; `tokens` and `values` have one length.

        Raises `ModelError` where the runtime does not tell how its tokens make words.
        """


class TorchRecognizer:
    """A model in PyTorch: greedy, with its own prompt and suppression rules.

    `encoder_batch`: recordings that the encoder takes at once.
    """

    def __init__(self, model: SpeechModel, *, encoder_batch: int = ENCODER_BATCH) -> None:
        self.model, self.source, self.max_duration_s = model, model.source, model.max_duration_s
        self.encoder_batch = encoder_batch

    @property
    def stored_bytes(self) -> int:
        """Return the size of the weights on disk, or as float16 would be where they lie elsewhere."""
        files = list(Path(self.source).expanduser().glob("*.safetensors"))
        if files:
            return sum(file.stat().st_size for file in files)
        return sum(2 * parameter.numel() for parameter in self.model.network.parameters())

    @torch.no_grad()
    def recognize(self, recordings: Sequence[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        began = time.perf_counter()
        size = self.encoder_batch
        encoded = Encoded.joined(
            [self.model.encode(self.model.features(recordings[i : i + size])) for i in range(0, len(recordings), size)]
        )
        between = time.perf_counter()
        recognitions = self.recognize_encoded(encoded, language, confidence=confidence)
        return RecognitionBatch(recognitions=recognitions, encoder_s=between - began, decoder_s=time.perf_counter() - between)

    def recognize_encoded(self, encoded: Encoded, language: str | None, *, confidence: bool = False) -> list[Recognition]:
        """Decode encoder outputs `[B, T, d]` to B recognitions."""
        model = self.model
        decoded, languages = model.decode_by_language(encoded, language)
        probabilities: list[tuple[float, ...]] = [()] * len(decoded)
        for rows in batches_by_language(range(len(decoded)), languages, len(decoded)) if confidence else ():
            found = self._log_probabilities(encoded[rows], [decoded[i][0] for i in rows], languages[rows[0]])
            for i, row in zip(rows, found, strict=True):
                probabilities[i] = row
        return [
            Recognition(text=model.text(tokens), tokens=tuple(tokens), ended=ended, log_probabilities=row, language=code)
            for (tokens, ended), row, code in zip(decoded, probabilities, languages, strict=True)
        ]

    def recognize_long(self, recording: np.ndarray, language: str | None) -> Recognition | None:
        found = self.model.decode_long(recording, language)
        if found is None:
            return None
        tokens, ended = found
        return Recognition(text=self.model.text(tokens), tokens=tuple(tokens), ended=ended)

    def split_words(self, tokens: Sequence[int], values: Sequence[float]) -> list[tuple[str, list[float]]]:
        return split_words_of_model(self.model, tokens, values)

    def _log_probabilities(self, encoded: Encoded, transcripts: list[list[int]], language: str | None) -> list[tuple[float, ...]]:
        """Return the log-probability of each token of each transcript, by one more pass of the decoder."""
        states = hidden_states(self.model, encoded, transcripts, language)
        return [
            tuple(token_log_probabilities(self.model, state, tokens).clamp(max=0).tolist())
            for state, tokens in zip(states, transcripts, strict=True)
        ]


def split_words_of_model(model: SpeechModel, tokens: Sequence[int], values: Sequence[float]) -> list[tuple[str, list[float]]]:
    """Split a hypothesis into words by the model's tokenizer, each with the values of its tokens; tokens without text are left out."""
    words = zip(*model.split_words(tokens, values), strict=True)
    return [(text, own) for word, own in words if (text := model.text(word))]


def refuse_words(source: str, runtime: str) -> NoReturn:
    """Raise the `ModelError` of a runtime whose tokens cannot be put together to words."""
    raise ModelError(
        f"{source}: {runtime} does not tell how its tokens make words; take word confidences in the runtime torch or onnx instead"
    )
