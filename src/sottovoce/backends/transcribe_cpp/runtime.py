"""A GGUF file in transcribe.cpp (package `transcribe-cpp`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.errors import ExportError, MissingDependencyError
from sottovoce.evaluation.context import EncoderWindow
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch, WordlessRecognizer
from sottovoce.models.languages import DETECT
from sottovoce.system.stderr import captured_stderr


class TranscribeCppRecognizer(WordlessRecognizer):
    """Greedy, without timestamps and without temperature fallback, so that it is comparable with the others."""

    runtime = "transcribe.cpp"
    max_duration_s = 30.0
    window = EncoderWindow(refusal="transcribe.cpp always runs the encoder on its whole window")

    def __init__(self, file: str | Path, threads: int) -> None:
        transcribe_cpp = _library()
        self.source = str(file)
        self._file = Path(file).expanduser()
        self._library = transcribe_cpp
        try:
            self._model = transcribe_cpp.Model(self._file, backend="cpu")
        except (transcribe_cpp.TranscribeError, OSError) as exc:
            raise ExportError(f"{file}: transcribe.cpp cannot load it ({exc}); export it again") from exc
        self._session = self._model.session(n_threads=threads)
        whisper = transcribe_cpp.WhisperRunOptions(temperature_inc=0.0, temperature=0.0)
        self._options: dict[str, Any] = {"family": whisper} if self._model.accepts(whisper) else {}
        if self._options:  # files of Moonshine say "en" of every model
            self.languages = tuple(self._model.capabilities.languages)
            self.detects_languages = bool(self._model.capabilities.supports_language_detect)

    @property
    def stored_bytes(self) -> int:
        """The whole file, with tokenizer and settings."""
        return self._file.stat().st_size

    def recognize(self, recordings: Sequence[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        """One recording after the other; transcribe.cpp tells encoder (with features) and decoder apart.

        Without timestamps it gives the text of a Whisper model, and no tokens.
        """
        chosen = self.choose_language(language)
        # A model of one language is not told which; without one, a model of several detects it.
        spoken = None if len(self.languages) <= 1 or chosen == DETECT else chosen
        found, encoder_s, decoder_s = list[Recognition](), 0.0, 0.0
        for samples in recordings:
            ended = True
            try:
                result = self._session.run(np.ascontiguousarray(samples, np.float32), language=spoken, timestamps="none", **self._options)
            except self._library.errors.OutputTruncated as exc:
                result, ended = exc.partial_result, False
                if result is None:
                    found.append(Recognition(text="", tokens=(), ended=False))
                    continue
            found.append(
                Recognition(
                    text=result.text.strip(),
                    tokens=tuple(token.id for token in result.tokens),
                    ended=ended,
                    log_probabilities=tuple(float(np.log(max(t.p, 1e-30))) for t in result.tokens) if confidence else (),
                )
            )
            encoder_s += (result.timings.mel_ms + result.timings.encode_ms) / 1000
            decoder_s += result.timings.decode_ms / 1000
        return RecognitionBatch(recognitions=found, encoder_s=encoder_s, decoder_s=decoder_s)


def _library() -> Any:
    """The package, which names its CPU kernels on standard error while it is imported."""
    try:
        with captured_stderr():
            import transcribe_cpp
    except ImportError as exc:
        raise MissingDependencyError("running GGUF needs the package transcribe-cpp; pip install 'sottovoce[gguf]'") from exc
    transcribe_cpp.set_log_callback(lambda *_: None)
    return transcribe_cpp
