"""The seam between recordings and words: a model in PyTorch, or a file in one of the runtimes."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.errors import ModelError
from sottovoce.evaluation.context import EncoderWindow, by_context
from sottovoce.evaluation.fallback import FALLBACK, Fallback
from sottovoce.evaluation.kl_divergence import hidden_states, token_log_probabilities
from sottovoce.evaluation.transcripts import GREEDY, LONG_FORM
from sottovoce.models.batching import Encoded, batches_by_language
from sottovoce.models.languages import DETECT, choose_language, default_language
from sottovoce.models.speech_model import SpeechModel
from sottovoce.models.weight_files import weight_files
from sottovoce.system.atomic_files import sha256
from sottovoce.system.devices import synchronize

ENCODER_BATCH = 8  # utterances; more does not make the encoder faster on a CPU


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The hypothesis for one recording.

    `tokens`: ids without prompt and end token. `ended`: the end token came before the token limit. `log_probabilities`: natural, one per
    token, or empty if they were not asked for. `language`: the code it was decoded in, found by the model where it was asked to detect it;
    None if nobody named or found one. `decoding`: "greedy", "fallback" (see `fallback.Fallback`) or "long-form" (the model's own procedure
    for long recordings); `temperature`: at which a fallback ended, 0 for greedy.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool
    log_probabilities: tuple[float, ...] = ()
    language: str | None = None
    decoding: str = GREEDY
    temperature: float = 0.0


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


@runtime_checkable
class WindowedRecognizer(Recognizer, Protocol):
    """A recognizer whose encoder may take less than its window."""

    window: EncoderWindow

    def recognize(
        self,
        recordings: Sequence[np.ndarray],
        language: str | None,
        *,
        confidence: bool = False,
        contexts: Sequence[int | None] = (),
    ) -> RecognitionBatch:
        """Recognize recordings, as `Recognizer` does; `contexts`: encoder positions of each, None: the whole window; empty: for all."""


@runtime_checkable
class LimitedRecognizer(Protocol):
    """A recognizer that can end a transcript by the length of the audio."""

    def limit_tokens(self, per_second: float) -> None:
        """Decode at most so many tokens for a second of audio from now on. Raises `ModelError` where the model cannot tell the length."""


NO_WINDOW = EncoderWindow(refusal="this recognizer does not say how its encoder could take less than its window")


def window_of(recognizer: Recognizer) -> EncoderWindow:
    """Return the window of a recognizer's encoder; it cannot be shortened where the recognizer says nothing of it."""
    return recognizer.window if isinstance(recognizer, WindowedRecognizer) else NO_WINDOW


def window_of_model(model: SpeechModel) -> EncoderWindow:
    """Return the window of a model's encoder."""
    if model.window_positions is None:
        kind = model.network.config.model_type
        return EncoderWindow(refusal=f"a {kind!r} model has no window of fixed length, so there is none to shorten")
    return EncoderWindow(positions=model.window_positions)


class TorchRecognizer:
    """A model in PyTorch: greedy, with its own prompt and suppression rules.

    `encoder_batch`: recordings that the encoder takes at once. `fallback`: decode again what does not pass its thresholds.
    """

    def __init__(self, model: SpeechModel, *, encoder_batch: int = ENCODER_BATCH, fallback: Fallback | None = None) -> None:
        self.model, self.source, self.max_duration_s = model, model.source, model.max_duration_s
        self.encoder_batch, self.fallback = encoder_batch, fallback
        self.window = window_of_model(model)

    def limit_tokens(self, per_second: float) -> None:
        """End transcripts by the length of the audio (Moonshine). Raises `ModelError` for other models."""
        self.model = self.model.with_tokens_per_second(per_second)

    @property
    def stored_bytes(self) -> int:
        """Return the size of the files of weights that were loaded, or as float16 would be where it is not known where they lie."""
        files = [] if self.model.folder is None else weight_files(self.model.folder)
        if files:
            return sum(file.stat().st_size for file in files)
        return sum(2 * parameter.numel() for parameter in self.model.network.parameters())

    @torch.no_grad()
    def recognize(
        self,
        recordings: Sequence[np.ndarray],
        language: str | None,
        *,
        confidence: bool = False,
        contexts: Sequence[int | None] = (),
    ) -> RecognitionBatch:
        began = time.perf_counter()
        encoded = self._encode(recordings, contexts or [None] * len(recordings))
        synchronize(self.model.placement.device)  # a GPU works on while this process goes on
        between = time.perf_counter()
        recognitions = self.recognize_encoded(encoded, language, confidence=confidence)
        return RecognitionBatch(recognitions=recognitions, encoder_s=between - began, decoder_s=time.perf_counter() - between)

    def _encode(self, recordings: Sequence[np.ndarray], contexts: Sequence[int | None]) -> Encoded:
        """Encode recordings of one context together, so that the states of each are its own whatever stands beside it."""
        parts, order, size = list[Encoded](), list[int](), self.encoder_batch
        for context, places in by_context(contexts).items():
            for first in range(0, len(places), size):
                own = [recordings[place] for place in places[first : first + size]]
                parts.append(self.model.encode(self.model.features(own) if context is None else self.model.short_features(own, context)))
            order += places
        joined = Encoded.joined(parts)
        return joined if order == sorted(order) else joined[[order.index(place) for place in range(len(order))]]

    def recognize_encoded(self, encoded: Encoded, language: str | None, *, confidence: bool = False) -> list[Recognition]:
        """Decode encoder outputs `[B, T, d]` to B recognitions."""
        decoded, languages = self.model.decode_by_language(encoded, language)
        recognitions = [
            Recognition(text=self.model.text(tokens), tokens=tuple(tokens), ended=ended, language=code)
            for (tokens, ended), code in zip(decoded, languages, strict=True)
        ]
        if self.fallback is None and not confidence:
            return recognitions
        means = [0.0] * len(recognitions)
        for rows in batches_by_language(range(len(decoded)), languages, len(decoded)):
            found = self._log_probabilities(encoded[rows], [recognitions[i] for i in rows])
            for i, (log_probabilities, mean) in zip(rows, found, strict=True):
                recognitions[i], means[i] = replace(recognitions[i], log_probabilities=log_probabilities), mean
        if self.fallback is not None:
            recognitions = [self._with_fallback(encoded[[i]], r, means[i], self.fallback) for i, r in enumerate(recognitions)]
        return recognitions if confidence else [replace(recognition, log_probabilities=()) for recognition in recognitions]

    def _with_fallback(self, encoded: Encoded, greedy: Recognition, mean: float, fallback: Fallback) -> Recognition:
        """Decode one recording again until a transcript passes, alone, so that its words do not depend on its neighbors."""
        recognition = replace(greedy, decoding=FALLBACK)
        for temperature in fallback.temperatures[1:]:
            if fallback.accepts(recognition.text, mean):
                break
            ((tokens, ended),) = self.model.sample_decode(encoded, greedy.language, temperature, seed=fallback.seed)
            sampled = replace(recognition, text=self.model.text(tokens), tokens=tuple(tokens), ended=ended, temperature=temperature)
            ((log_probabilities, mean),) = self._log_probabilities(encoded, [sampled])
            recognition = replace(sampled, log_probabilities=log_probabilities)
        return recognition

    def recognize_long(self, recording: np.ndarray, language: str | None) -> Recognition | None:
        if language == DETECT:  # from the first pass, as the procedure itself does, so that the transcript can name the language
            first = recording[: int(self.max_duration_s * SAMPLE_RATE)]
            (language,) = self.model.detect_languages(self.model.encode(self.model.features([first])))
        found = self.model.decode_long(recording, language)
        if found is None:
            return None
        tokens, ended = found
        return Recognition(text=self.model.text(tokens), tokens=tuple(tokens), ended=ended, language=language, decoding=LONG_FORM)

    def split_words(self, tokens: Sequence[int], values: Sequence[float]) -> list[tuple[str, list[float]]]:
        return split_words_of_model(self.model, tokens, values)

    def _log_probabilities(self, encoded: Encoded, recognitions: Sequence[Recognition]) -> list[tuple[tuple[float, ...], float]]:
        """Return the log-probability of each token of each recognition, and their mean with the end token, by one more decoder pass.

        All recognitions are in one language. As in openai/whisper, the sum is divided by the number of tokens plus one in any case.
        """
        states = hidden_states(self.model, encoded, [r.tokens for r in recognitions], recognitions[0].language)
        found = []
        for state, recognition in zip(states, recognitions, strict=True):
            count = len(recognition.tokens)
            own = token_log_probabilities(self.model, state, recognition.tokens).clamp(max=0).tolist()
            end = self._end_log_probability(state[count:]) if recognition.ended else 0.0
            found.append((tuple(own), (sum(own) + end) / (count + 1)))
        return found

    def _end_log_probability(self, state: Tensor) -> float:
        """Return the log-probability of any end token at the head's input `state` `[1, d]`."""
        ends = self.model.end_tokens
        return float(token_log_probabilities(self.model, state.expand(len(ends), -1), ends).logsumexp(0))


def split_words_of_model(model: SpeechModel, tokens: Sequence[int], values: Sequence[float]) -> list[tuple[str, list[float]]]:
    """Split a hypothesis into words by the model's tokenizer, each with the values of its tokens; tokens without text are left out."""
    words = zip(*model.split_words(tokens, values), strict=True)
    return [(text, own) for word, own in words if (text := model.text(word))]


class WordlessRecognizer:
    """What runtimes have in common that have no procedure for long recordings and do not tell how their tokens make words.

    `runtime`: as it is called. Long recordings are cut at silence, as for every model without timestamps. `languages`: the codes that the
    model transcribes, none: its files do not say. `detects_languages`: whether the runtime can tell which of them is spoken.
    """

    source: str
    runtime: ClassVar[str]
    languages: tuple[str, ...] = ()
    detects_languages: bool = False

    def choose_language(self, asked: str | None) -> str:
        """Return the code of the language to transcribe: the one asked for, "auto", or the default. Raises `ModelError`."""
        code = choose_language(asked, self.languages, detects=self.detects_languages, source=self.source)
        return code or default_language(self.languages, self.source)

    def recognize_long(self, recording: np.ndarray, language: str | None) -> Recognition | None:
        del recording, language
        return None

    def split_words(self, tokens: Sequence[int], values: Sequence[float]) -> list[tuple[str, list[float]]]:
        del tokens, values
        self.refuse_words()

    def refuse_words(self) -> NoReturn:
        """Raise `ModelError`: this runtime has no word confidences. To be told before any work."""
        raise ModelError(
            f"{self.source}: {self.runtime} does not tell how its tokens make words; take word confidences in the runtime torch or "
            "onnxruntime instead"
        )


def recognizer_digest(recognizer: Recognizer) -> str:
    """Return the sha256 of a file; of a folder, that of its files' names and digests; in PyTorch the model's own hash of its weights."""
    path = Path(recognizer.source).expanduser()
    if recognizer.source and path.is_file():
        return sha256(path)
    if isinstance(recognizer, TorchRecognizer):
        return recognizer.model.digest()
    if not recognizer.source or not path.exists():  # a recognizer of the caller's own
        return hashlib.sha256(f"{recognizer.source} {recognizer.stored_bytes}".encode()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def decoding_settings(recognizer: Recognizer) -> dict[str, Any]:
    """Return what decides about the words beside the weights, as plain data; a file of a runtime holds all but the limit of tokens."""
    limit = getattr(getattr(recognizer, "model", None), "tokens_per_second", None)
    limited = {} if limit is None else {"tokens_per_second": limit}
    if not isinstance(recognizer, TorchRecognizer):
        return limited
    model = recognizer.model
    generation = {key: value for key, value in model.network.generation_config.to_dict().items() if key != "transformers_version"}
    vocabulary: dict[str, int] = getattr(getattr(model.processor, "tokenizer", None), "get_vocab", dict)()
    parts = [generation, sorted(vocabulary.items()), model.network.config.to_dict(), getattr(model.processor, "feature_extractor", None)]
    content = json.dumps(parts, sort_keys=True, default=str)
    return limited | {
        "decoding": hashlib.sha256(content.encode()).hexdigest(),
        "fallback": asdict(recognizer.fallback) if recognizer.fallback else None,
        "device": None if model.placement.is_plain else str(model.placement),
    }
