"""A folder in CrispASR (package `crispasr`): greedy."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.backends.crispasr.layout import LIMIT, MODEL, NAME, QWEN, TOKENIZER
from sottovoce.data.audio import SAMPLE_RATE, filled_up
from sottovoce.errors import ExportError, MissingDependencyError, first_line
from sottovoce.evaluation.context import EncoderWindow
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch, WordlessRecognizer
from sottovoce.system.stderr import captured_stderr

SHORTEST = 8000  # samples; Qwen3-ASR's own front end fills up a shorter recording with zeros, CrispASR's does not


class CrispAsrRecognizer(WordlessRecognizer):
    """CrispASR, one recording after the other. Moonshine stops there at 6.5 tokens a second; phrases that come again and again are cut."""

    runtime = NAME
    max_duration_s = 30.0
    window = EncoderWindow(refusal="Moonshine and Qwen3-ASR have no window of fixed length, so there is none to shorten")

    def __init__(self, folder: str | Path, threads: int) -> None:
        package = _require_crispasr()
        self.source, self._folder = str(folder), Path(folder).expanduser()
        _require_file(self._folder, MODEL)
        architecture, limit = _checked_gguf(self._folder / MODEL)
        self._files = [MODEL] if architecture == QWEN else [MODEL, TOKENIZER]
        _require_file(self._folder, self._files[-1])
        self._names = _languages() if architecture == QWEN else {}
        self.languages, self.detects_languages = tuple(self._names), bool(self._names)
        try:
            with captured_stderr():
                self._session = package.Session(str(self._folder / MODEL), n_threads=threads, use_gpu=False)
        except (RuntimeError, OSError) as exc:
            raise ExportError(f"{folder}: {NAME} cannot load it ({first_line(exc)}); export it again") from exc
        if limit:
            self._session.set_max_new_tokens(limit)

    @property
    def stored_bytes(self) -> int:
        """Model and tokenizer."""
        return sum((self._folder / name).stat().st_size for name in self._files)

    def recognize(self, recordings: Sequence[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        """CrispASR reports no times of its parts and no ids of tokens; all time counts as the decoder's. Cut transcripts are not known."""
        del confidence
        spoken, shortest = self._spoken(language), SHORTEST if self._names else 0
        began, found = time.perf_counter(), list[Recognition]()
        for samples in recordings:
            with captured_stderr():
                segments = self._session.transcribe(filled_up(samples, shortest), SAMPLE_RATE, language=spoken)
            text = " ".join(segment.text.strip() for segment in segments).strip()
            found.append(Recognition(text=text, tokens=(), ended=True))
        return RecognitionBatch(recognitions=found, encoder_s=0.0, decoder_s=time.perf_counter() - began)

    def _spoken(self, language: str | None) -> str | None:
        """Return the English name of the language, as the prompt has it; None: the model says it before the transcript."""
        return self._names.get(self.choose_language(language))  # "auto" has none, and neither has a Moonshine model


def _languages() -> dict[str, str]:
    """Return the names of Qwen3-ASR's languages by code. CrispASR knows the names of 17; it takes a name as it is."""
    from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

    return dict(LANGUAGE_CODE_TO_NAME)


def _require_file(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise ExportError(f"{folder}: has no {name}; a folder written by `sottovoce export ... {NAME}` is wanted")


def _checked_gguf(file: Path) -> tuple[str, int]:
    """Return the architecture and the most tokens of a transcript (0: not told).

    Raises `ExportError` for a file that is cut short or damaged, on which native code may end the process.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(file)
        end = max(tensor.data_offset + tensor.n_bytes for tensor in reader.tensors)
        architecture = str(reader.fields["general.architecture"].contents())
        limit = int(reader.fields[LIMIT].contents()) if LIMIT in reader.fields else 0
    except Exception as exc:
        raise ExportError(f"{file}: is no GGUF file or is damaged; export it again") from exc
    if end > file.stat().st_size:
        raise ExportError(f"{file}: is cut short; export it again")
    return architecture, limit


def _require_crispasr() -> Any:
    try:
        import gguf  # noqa: F401 - checks files before native code sees them

        with captured_stderr():
            import crispasr
    except (ImportError, OSError) as exc:
        raise MissingDependencyError("running CrispASR needs the package crispasr; pip install 'sottovoce[crispasr]'") from exc
    return crispasr
