"""A `.bin` file in whisper.cpp (package `pywhispercpp`)."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.backends.openai_vocabulary import languages_of
from sottovoce.backends.whisper_cpp.header import read_header
from sottovoce.data.audio import filled_up
from sottovoce.errors import ExportError, MissingDependencyError
from sottovoce.evaluation.context import EncoderWindow
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch, WordlessRecognizer
from sottovoce.system.stderr import captured_stderr

LEAST_SAMPLES = 1800  # more than 10 frames of the spectrum; of less whisper.cpp says nothing
# Greedy, without timestamps and without temperature fallback, so that it is comparable with the others.
SETTINGS: dict[str, Any] = {
    "no_timestamps": True,
    "single_segment": True,
    "suppress_nst": True,
    "temperature_inc": 0.0,
    "no_context": True,
    "no_speech_thold": 1.0,
    "greedy": {"best_of": 1},
    "print_progress": False,
    "print_timestamps": False,
}


class WhisperCppRecognizer(WordlessRecognizer):
    """whisper.cpp, one recording after the other."""

    runtime = "whisper.cpp"
    max_duration_s = 30.0

    def __init__(self, file: str | Path, threads: int) -> None:
        try:
            import _pywhispercpp
            from pywhispercpp.model import Model
        except ImportError as exc:
            raise MissingDependencyError("running whisper.cpp needs the package pywhispercpp; pip install 'sottovoce[ggml]'") from exc
        self._file = Path(file).expanduser()
        header = read_header(self._file)  # whisper.cpp ends the process on files that it does not like
        self.source, self._calls, self._class, self._threads = str(file), _pywhispercpp, Model, threads
        self.window = EncoderWindow(positions=header[1])
        self.languages = languages_of(header[0])
        self.detects_languages = len(self.languages) > 1
        self._whole, self._short = self._load(whole=True), None
        self._context = vars(self._whole)["_ctx"]  # the runtime's, of the recording that was recognized last
        self._end = _pywhispercpp.whisper_token_eot(self._context)

    def _load(self, *, whole: bool) -> Any:
        """Load the file for whole windows, or for parts of them. Raises `ExportError`."""
        with captured_stderr() as logs:
            model = self._class(
                str(self._file),
                n_threads=self._threads,
                redirect_whispercpp_logs_to=False,
                context_params=None if whole else {"flash_attn": False},
                **SETTINGS,
            )
        said = logs[0]
        if "failed to load model" in said:  # no exception, but a context that ends the process when it is used
            reason = said.split("whisper_model_load:")[-1].strip().splitlines()[0]
            raise ExportError(f"{self.source}: whisper.cpp cannot load it ({reason}); export it again")
        return model

    def _model(self, context: int | None) -> Any:
        """The loaded file for whole windows, or the one for parts of them, loaded on first use.

        With flash attention, whisper.cpp rounds the length of the encoder's output up to a multiple of 256 and attends to what lies in
        the rest, which are states of an earlier recording. Parts of windows run without it.
        """
        if context is None:
            return self._whole
        if self._short is None:
            self._short = self._load(whole=False)
        return self._short

    @property
    def stored_bytes(self) -> int:
        """The whole file, with the vocabulary."""
        return self._file.stat().st_size

    def recognize(
        self,
        recordings: Sequence[np.ndarray],
        language: str | None,
        *,
        confidence: bool = False,
        contexts: Sequence[int | None] = (),
    ) -> RecognitionBatch:
        """whisper.cpp reports no times of its parts; all counts as the decoder's."""
        spoken = self.choose_language(language)
        found, calls, seconds = list[Recognition](), self._calls, 0.0
        for samples, positions in zip(recordings, contexts or [None] * len(recordings), strict=True):
            model = self._model(positions)
            began = time.perf_counter()
            segments = model.transcribe(filled_up(samples, LEAST_SAMPLES), language=spoken, audio_ctx=positions or 0)
            self._context = context = vars(model)["_ctx"]
            tokens = [
                (calls.whisper_full_get_token_id(context, i, j), calls.whisper_full_get_token_p(context, i, j))
                for i in range(calls.whisper_full_n_segments(context))
                for j in range(calls.whisper_full_n_tokens(context, i))
            ]
            words = [(token, p) for token, p in tokens if token < self._end]
            found.append(
                Recognition(
                    text=" ".join(segment.text.strip() for segment in segments).strip(),
                    tokens=tuple(token for token, _ in words),
                    ended=any(token == self._end for token, _ in tokens),
                    log_probabilities=tuple(float(np.log(max(p, 1e-30))) for _, p in words) if confidence else (),
                )
            )
            seconds += time.perf_counter() - began
        return RecognitionBatch(recognitions=found, encoder_s=0.0, decoder_s=seconds)
