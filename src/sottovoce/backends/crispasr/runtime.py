"""A folder in CrispASR (package `crispasr`): greedy."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.backends.crispasr.layout import MODEL, NAME, TOKENIZER
from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.errors import ExportError, MissingDependencyError
from sottovoce.evaluation.context import EncoderWindow
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch, WordlessRecognizer
from sottovoce.system.stderr import captured_stderr


class CrispAsrRecognizer(WordlessRecognizer):
    """CrispASR, one recording after the other. It stops at 6.5 tokens a second, and where a short phrase comes four times in a row."""

    runtime = NAME
    max_duration_s = 30.0
    window = EncoderWindow(refusal="Moonshine has no window of fixed length, so there is none to shorten")

    def __init__(self, folder: str | Path, threads: int) -> None:
        package = _require_crispasr()
        self.source, self._folder = str(folder), Path(folder).expanduser()
        if missing := [name for name in (MODEL, TOKENIZER) if not (self._folder / name).is_file()]:
            raise ExportError(f"{folder}: has no {missing[0]}; a folder written by `sottovoce export ... {NAME}` is wanted")
        _check_gguf(self._folder / MODEL)
        try:
            with captured_stderr():
                self._session = package.Session(str(self._folder / MODEL), n_threads=threads, use_gpu=False)
        except (RuntimeError, OSError) as exc:
            raise ExportError(f"{folder}: {NAME} cannot load it ({str(exc).splitlines()[0]}); export it again") from exc

    @property
    def stored_bytes(self) -> int:
        """Model and tokenizer."""
        return sum((self._folder / name).stat().st_size for name in (MODEL, TOKENIZER))

    def recognize(self, recordings: Sequence[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        """CrispASR reports no times of its parts and no ids of tokens; all time counts as the decoder's. Cut transcripts are not known."""
        del language, confidence
        began, found = time.perf_counter(), list[Recognition]()
        for samples in recordings:
            with captured_stderr():
                segments = self._session.transcribe(np.ascontiguousarray(samples, np.float32), SAMPLE_RATE)
            text = " ".join(segment.text.strip() for segment in segments).strip()
            found.append(Recognition(text=text, tokens=(), ended=True))
        return RecognitionBatch(recognitions=found, encoder_s=0.0, decoder_s=time.perf_counter() - began)


def _check_gguf(file: Path) -> None:
    """Raise `ExportError` for a file that is cut short or damaged, on which native code may end the process."""
    import gguf

    try:
        reader = gguf.GGUFReader(file)
        end = max(tensor.data_offset + tensor.n_bytes for tensor in reader.tensors)
    except Exception as exc:
        raise ExportError(f"{file}: is no GGUF file or is damaged; export it again") from exc
    if end > file.stat().st_size:
        raise ExportError(f"{file}: is cut short; export it again")


def _require_crispasr() -> Any:
    try:
        import gguf  # noqa: F401 - checks files before native code sees them

        with captured_stderr():
            import crispasr
    except (ImportError, OSError) as exc:
        raise MissingDependencyError("running CrispASR needs the package crispasr; pip install 'sottovoce[crispasr]'") from exc
    return crispasr
