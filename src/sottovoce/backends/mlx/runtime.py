"""A folder in mlx-whisper, with its own features, decoding and tokenizer: greedy, without timestamps, in float32."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.backends.mlx.layout import CONFIG, NAME, WEIGHTS
from sottovoce.backends.openai_vocabulary import languages_of
from sottovoce.errors import ExportError, MissingDependencyError, first_line
from sottovoce.evaluation.context import EncoderWindow
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch, WordlessRecognizer
from sottovoce.models.languages import DETECT

SAMPLES = 480_000  # of 30 s


class MlxRecognizer(WordlessRecognizer):
    """mlx-whisper, one recording after the other. MLX itself chooses device and threads."""

    runtime = "mlx"
    max_duration_s = 30.0
    window = EncoderWindow(refusal="mlx-whisper always runs the encoder on its whole window")

    def __init__(self, folder: str | Path) -> None:
        self._core, self._whisper, flatten = _require_mlx()
        self.source, self._folder = str(folder), Path(folder).expanduser()
        if missing := [name for name in (CONFIG, WEIGHTS) if not (self._folder / name).is_file()]:
            raise ExportError(f"{folder}: has no {missing[0]}; a folder written by `sottovoce export ... {NAME}` is wanted")
        try:
            self.model = self._whisper.load_models.load_model(str(self._folder), dtype=self._core.float32)
            stored = set(self._core.load(str(self._folder / WEIGHTS)))
        except Exception as exc:
            raise ExportError(f"{folder}: mlx-whisper cannot load it ({first_line(exc)}); export it again") from exc
        wanted = {name for name, _ in flatten(self.model.parameters())} - {"alignment_heads"}
        if odd := sorted(wanted - stored):  # it would go on with random numbers
            raise ExportError(f"{folder}: has no tensor {odd[0]!r}, which mlx-whisper wants; export it again")
        self.languages, self.detects_languages = languages_of(self.model.dims.n_vocab), self.model.is_multilingual

    @property
    def stored_bytes(self) -> int:
        """The weights; mlx-whisper brings vocabularies itself."""
        return (self._folder / WEIGHTS).stat().st_size

    def recognize(self, recordings: Sequence[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        """One after the other; encoder (with features) and decoder are timed apart. There are no log-probabilities of tokens."""
        del confidence
        spoken = self.choose_language(language)
        found, encoder_s, decoder_s = list[Recognition](), 0.0, 0.0
        for samples in recordings:
            began = time.perf_counter()
            states = self.states(samples)
            between = time.perf_counter()
            found.append(self._decoded(states, None if spoken == DETECT else spoken))
            encoder_s, decoder_s = encoder_s + between - began, decoder_s + time.perf_counter() - between
        return RecognitionBatch(recognitions=found, encoder_s=encoder_s, decoder_s=decoder_s)

    def states(self, samples: np.ndarray) -> Any:
        """Return the encoder's output for `samples` `[n]`, an array of MLX `[1, positions, width]`."""
        audio = self._whisper.audio
        padded = audio.pad_or_trim(self._core.array(np.ascontiguousarray(samples, np.float32)), SAMPLES)
        states = self.model.embed_audio(audio.log_mel_spectrogram(padded, n_mels=self.model.dims.n_mels)[None])
        states[0, 0, 0].item()  # MLX computes when a number is asked for
        return states

    def _decoded(self, states: Any, language: str | None) -> Recognition:
        """Decode in `language`; None: mlx-whisper finds out which it is."""
        decoding, dims = self._whisper.decoding, self.model.dims
        prompt = 4 if self.model.is_multilingual else 2
        room = dims.n_text_ctx - prompt
        (result,) = decoding.decode(
            self.model,
            states,
            decoding.DecodingOptions(language=language, without_timestamps=True, fp16=False, sample_len=room),
        )
        return Recognition(
            text=result.text,
            tokens=tuple(result.tokens),
            ended=len(result.tokens) < room,
            language=result.language,
        )


def _require_mlx() -> tuple[Any, Any, Any]:
    try:
        import mlx.core
        import mlx.utils
        import mlx_whisper
        import mlx_whisper.audio
        import mlx_whisper.decoding
        import mlx_whisper.load_models
        import mlx_whisper.tokenizer
    except ImportError as exc:
        raise MissingDependencyError("running MLX needs the packages mlx and mlx-whisper; pip install 'sottovoce[mlx]'") from exc
    return mlx.core, mlx_whisper, mlx.utils.tree_flatten
