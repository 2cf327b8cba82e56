"""A folder of ONNX files in ONNX Runtime: greedy decoding with the key-value cache."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sottovoce.backends.onnx_runtime import NAME
from sottovoce.backends.onnx_runtime.layout import DECODER, ENCODER, SHORT_CONTEXT, cache_names
from sottovoce.backends.onnx_runtime.saturation import name_saturation
from sottovoce.errors import DataError, ExportError, MissingDependencyError, first_line
from sottovoce.evaluation.context import EncoderWindow, ShortContext, by_context
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch, split_words_of_model, window_of_model
from sottovoce.models.batching import batches_by_language
from sottovoce.models.languages import DETECT
from sottovoce.models.load import FAMILIES
from sottovoce.models.whisper_settings import languages_by_token
from sottovoce.system.plain_data import from_plain

WANTED = f"a folder written by `sottovoce export ... {NAME}` is wanted"
Decoded = tuple[list[int], list[float], bool]  # tokens, their log-probabilities, whether they came to their end
BATCH = 8  # utterances decoded together, where the family pads them to one length


class _Settings(nn.Module):
    """A network without weights: what a family needs to know to make features, prompts and words."""

    def __init__(self, config: Any, generation_config: Any) -> None:
        super().__init__()
        self.config, self.generation_config, self.dtype = config, generation_config, torch.float32
        self.nothing = nn.Parameter(torch.empty(0), requires_grad=False)


class OnnxRecognizer:
    """Encoder and decoder as `export` writes them, with prompt, suppression and end of the original's `generate`."""

    def __init__(self, folder: str | Path, threads: int, *, batch: int = BATCH) -> None:
        runtime = _require_runtime()
        from transformers import AutoConfig, AutoProcessor, GenerationConfig

        self.source, self._folder, self._runtime, self._batch = str(folder), Path(folder).expanduser(), runtime, batch
        if missing := [name for name in (ENCODER, DECODER, "config.json") if not (self._folder / name).is_file()]:
            raise ExportError(f"{folder}: has no {missing[0]}; {WANTED}")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            config = AutoConfig.from_pretrained(self._folder)
            settings = _Settings(config, GenerationConfig.from_pretrained(self._folder))
            processor = AutoProcessor.from_pretrained(self._folder)
            self._encoder, self._decoder = (
                runtime.InferenceSession(str(self._folder / name), options, providers=["CPUExecutionProvider"])
                for name in (ENCODER, DECODER)
            )
        except Exception as exc:
            raise ExportError(f"{folder}: ONNX Runtime cannot load it ({first_line(exc)}); export it again") from exc
        names = {value.name: value.shape for value in self._decoder.get_inputs()}
        layers = sum(name.endswith(".decoder.key") for name in names)
        if config.model_type not in FAMILIES or not layers:
            raise ExportError(f"{folder}: holds no speech recognizer in the layout of {NAME} ({config.model_type}); {WANTED}")
        name_saturation(str(folder), self._folder / ENCODER)
        self.model = FAMILIES[config.model_type](settings, processor, self.source)
        self.max_duration_s = self.model.max_duration_s
        self._past, self._present = cache_names(layers, "past_key_values"), cache_names(layers, "present")
        self._heads, self._size = (int(names[self._past[0]][i]) for i in (1, 3))
        self._input = self._encoder.get_inputs()[0].name
        self.window = self._window(config)

    @property
    def stored_bytes(self) -> int:
        """The ONNX files."""
        return sum(file.stat().st_size for file in (self._folder / "onnx").iterdir())

    def limit_tokens(self, per_second: float) -> None:
        """End transcripts by the length of the audio (Moonshine). Raises `ModelError` for other models."""
        self.model = self.model.with_tokens_per_second(per_second)

    def _window(self, config: Any) -> EncoderWindow:
        """Whether the encoder's file takes less than its window, and what `export` wrote of the contexts it was tuned for."""
        window = window_of_model(self.model)
        if window.refusal is not None:
            return window
        if isinstance(self._encoder.get_inputs()[0].shape[-1], int):
            return replace(window, refusal="its encoder was exported for whole windows only; export the quantized folder again")
        stated = getattr(config, SHORT_CONTEXT, None)
        try:
            return window if stated is None else replace(window, tuned=from_plain(ShortContext, stated))
        except DataError as exc:
            raise ExportError(f"{self.source}: {SHORT_CONTEXT} in config.json makes no sense ({exc}); export it again") from exc

    def recognize(
        self,
        recordings: Sequence[np.ndarray],
        language: str | None,
        *,
        confidence: bool = False,
        contexts: Sequence[int | None] = (),
    ) -> RecognitionBatch:
        """In batches of one context each; encoder (with features) and decoder are timed apart."""
        found, encoder_s, decoder_s = dict[int, Recognition](), 0.0, 0.0
        size = self._batch if self.model.fixed_length else 1
        for context, places in by_context(contexts or [None] * len(recordings)).items():
            for batch in (places[start : start + size] for start in range(0, len(places), size)):
                began = time.perf_counter()
                states = self._encode([recordings[place] for place in batch], context)
                between = time.perf_counter()
                spoken = self._languages(states, language)
                for place, code, (tokens, probabilities, ended) in zip(batch, spoken, self._decode_each(states, spoken), strict=True):
                    found[place] = Recognition(
                        text=self.model.text(tokens),
                        tokens=tuple(tokens),
                        ended=ended,
                        language=code,
                        log_probabilities=tuple(probabilities) if confidence else (),
                    )
                encoder_s, decoder_s = encoder_s + between - began, decoder_s + time.perf_counter() - between
        return RecognitionBatch(recognitions=[found[place] for place in sorted(found)], encoder_s=encoder_s, decoder_s=decoder_s)

    def recognize_long(self, recording: np.ndarray, language: str | None) -> Recognition | None:
        """Cut at silence."""
        del recording, language
        return None

    def split_words(self, tokens: Sequence[int], values: Sequence[float]) -> list[tuple[str, list[float]]]:
        return split_words_of_model(self.model, tokens, values)

    def _encode(self, recordings: Sequence[np.ndarray], context: int | None) -> Any:
        """Encoder states as a value of the runtime, `[B, T, d]`."""
        features = self.model.features(recordings) if context is None else self.model.short_features(recordings, context)
        array = next(tensor for tensor in features.values() if tensor.is_floating_point()).numpy()
        return self._encoder.run_with_ort_values(None, {self._input: self._value(array)})[0]

    def _languages(self, states: Any, language: str | None) -> list[str | None]:
        """The language of each utterance: as asked, or, with "auto", the one whose token is most probable after the start token."""
        count, code = states.shape()[0], self.model.choose_language(language)
        if code != DETECT:
            return [code] * count
        settings = self.model.network.generation_config
        codes = languages_by_token(settings)
        start = np.full((count, 1), settings.decoder_start_token_id, np.int64)
        logits, *_ = self._step(start, self._no_cache(count), states, first=True)
        tokens = list(codes)
        return [codes[tokens[i]] for i in logits.numpy()[:, -1, tokens].argmax(1)]

    def _step(self, ids: np.ndarray, cache: list[Any], states: Any, *, first: bool) -> list[Any]:
        """Logits `[B, T, vocabulary]`, and the new keys and values, as values of the runtime."""
        feed = dict(zip(self._past, cache, strict=True)) | {
            "input_ids": self._value(ids),
            "encoder_hidden_states": states,
            "use_cache_branch": self._value(np.array([not first])),
        }
        found: list[Any] = self._decoder.run_with_ort_values(["logits", *self._present], feed)
        return found

    def _decode_each(self, states: Any, languages: Sequence[str | None]) -> list[Decoded]:
        """Decode each utterance in its language."""
        if len(set(languages)) == 1:
            return self._decode(states, languages[0])
        found = dict[int, Decoded]()
        for rows in batches_by_language(range(len(languages)), languages, len(languages)):
            found.update(zip(rows, self._decode(self._value(states.numpy()[rows]), languages[rows[0]]), strict=True))
        return [found[row] for row in sorted(found)]

    def _decode(self, states: Any, language: str | None) -> list[Decoded]:
        generation = self.model.network.generation_config
        prompt = self.model.teacher_forcing([[]], language)[0]["decoder_input_ids"].numpy()
        count, ends = states.shape()[0], self.model.end_tokens
        suppressed = list(getattr(generation, "suppress_tokens", None) or [])
        at_first = list(getattr(generation, "begin_suppress_tokens", None) or [])
        rows: list[Decoded] = [([], [], False) for _ in range(count)]
        ids, cache = np.repeat(prompt, count, axis=0), self._no_cache(count)
        for step in range(self.model.step_limit(language, states.shape()[1])):
            logits, *present = self._step(ids, cache, states, first=step == 0)
            # Later steps return no keys and values of the audio: those of the first are kept.
            cache = [old if step and ".encoder." in name else new for name, old, new in zip(self._past, cache, present, strict=True)]
            scores = logits.numpy()[:, -1].astype(np.float64)
            scores[:, suppressed] = -np.inf
            if step == 0:
                scores[:, at_first] = -np.inf
            chosen = scores.argmax(1)
            for i, token in enumerate(chosen.tolist()):
                tokens, probabilities, ended = rows[i]
                if ended:
                    continue
                if token in ends:
                    rows[i] = (tokens, probabilities, True)
                    continue
                tokens.append(token)
                shifted = logits.numpy()[i, -1] - logits.numpy()[i, -1].max()
                probabilities.append(float(min(0.0, shifted[token] - np.log(np.exp(shifted).sum()))))
            if all(ended for _, _, ended in rows):
                break
            ids = chosen[:, None]
        return rows

    def _no_cache(self, count: int) -> list[Any]:
        return [self._value(np.zeros((count, self._heads, 0, self._size), np.float32)) for _ in self._past]

    def _value(self, array: np.ndarray) -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _require_runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingDependencyError("running ONNX needs the package onnxruntime; pip install 'sottovoce[onnx]'") from exc
    return onnxruntime
