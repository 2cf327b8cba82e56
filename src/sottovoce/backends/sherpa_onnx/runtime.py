"""A folder in sherpa-onnx, by its Python package: greedy, without timestamps."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.backends.onnx_runtime.saturation import name_saturation
from sottovoce.backends.sherpa_onnx.layout import FILES, NAME, TOKENS
from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.errors import ExportError, MissingDependencyError, ModelError, first_line
from sottovoce.evaluation.context import EncoderWindow
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch, WordlessRecognizer
from sottovoce.models.languages import DEFAULT_LANGUAGE, DETECT
from sottovoce.system.stderr import captured_stderr

WHOLE_WINDOW = 3000  # frames of silence behind a recording, so that a Whisper encoder sees 30 s, as PyTorch's does
SHORTEST_TAIL_S = 0.5  # sherpa-onnx cuts windows of Whisper half a second before their end
TOKENS_PER_SECOND = {"whisper": 6, "moonshine": 15}  # sherpa-onnx stops there
MOST_TOKENS = 450  # 30 s of that
SHIFT = 160  # samples from one frame to the next
LONGEST_S = {"whisper": 30.0 - SHORTEST_TAIL_S, "moonshine": 30.0}
WANTED_METADATA = ("n_mels", "n_text_layer", "n_text_ctx", "n_text_state", "n_vocab", "sot", "eot", "sot_sequence", "no_timestamps")


class SherpaRecognizer(WordlessRecognizer):
    """sherpa-onnx, one recording after the other."""

    runtime = NAME
    window = EncoderWindow(refusal="sherpa-onnx runs the encoder on whole windows here")

    def __init__(self, folder: str | Path, threads: int) -> None:
        self._package, self._onnx = _require_sherpa()
        self.source, self._folder, self._threads = str(folder), Path(folder).expanduser(), threads
        self.family = next((family for family, names in FILES.items() if (self._folder / names[0]).is_file()), "whisper")
        self._files = [self._folder / name for name in (*FILES[self.family], TOKENS)]
        if missing := [file.name for file in self._files if not file.is_file()]:
            raise ExportError(f"{folder}: has no {missing[0]}; a folder written by `sottovoce export ... {NAME}` is wanted")
        self._most_tokens = MOST_TOKENS
        self.languages = self._checked()
        self.detects_languages = len(self.languages) > 1
        name_saturation(str(folder), self._files[0])
        self.max_duration_s = LONGEST_S[self.family]
        self._recognizers = dict[str, Any]()
        self._recognizer(DEFAULT_LANGUAGE)

    def _checked(self) -> tuple[str, ...]:
        """Return the codes of a Whisper model's languages; sherpa-onnx ends the process on files that it does not like."""
        graphs = list[Any]()
        for file in self._files[:2]:
            try:
                graphs.append(self._onnx.load(str(file), load_external_data=False))
            except Exception as exc:
                raise ExportError(f"{file}: is no ONNX file or is damaged; export it again") from exc
        try:
            lines = self._files[2].read_text(encoding="ascii").splitlines()
            numbers = [int(line.split()[-1]) for line in lines]
        except (ValueError, IndexError) as exc:
            raise ExportError(f"{self._files[2]}: is damaged; export it again") from exc
        if not numbers or numbers != list(range(len(numbers))):
            raise ExportError(f"{self._files[2]}: is damaged (its numbers have gaps); export it again")
        if self.family != "whisper":
            return ()
        entries = {entry.key: entry.value for entry in graphs[0].metadata_props}
        if missing := [name for name in WANTED_METADATA if name not in entries]:
            raise ExportError(f"{self._files[0]}: its metadata have no {missing[0]!r}, which {NAME} wants; export it again")
        self._most_tokens = int(entries["n_text_ctx"]) // 2
        multilingual = entries.get("is_multilingual") == "1"
        return tuple(entries.get("all_language_codes", "").split(",")) if multilingual else (DEFAULT_LANGUAGE,)

    def _recognizer(self, language: str) -> Any:
        """sherpa-onnx fixes the language when it loads a model; an empty one is detected."""
        if language not in self._recognizers:
            encoder, decoder, tokens = map(str, self._files)
            with captured_stderr():
                try:
                    if self.family == "moonshine":
                        found = self._package.OfflineRecognizer.from_moonshine_v2(encoder, decoder, tokens, num_threads=self._threads)
                    else:
                        found = self._package.OfflineRecognizer.from_whisper(
                            encoder, decoder, tokens, language=language, num_threads=self._threads, tail_paddings=WHOLE_WINDOW
                        )
                except Exception as exc:
                    raise ExportError(f"{self.source}: {NAME} cannot load it ({first_line(exc)}); export it again") from exc
            self._recognizers = {language: found}  # one at a time: each holds the whole model
        return self._recognizers[language]

    @property
    def stored_bytes(self) -> int:
        """All files of the folder."""
        return sum(file.stat().st_size for file in self._folder.iterdir() if file.is_file())

    def recognize(self, recordings: Sequence[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        """sherpa-onnx reports no times of its parts, no ids and no probabilities; all time counts as the decoder's."""
        del confidence
        spoken = self.choose_language(language)
        if self.family == "moonshine":  # its files are of one language, and do not say which
            spoken = DEFAULT_LANGUAGE
        recognizer = self._recognizer("" if spoken == DETECT else spoken)
        began, found = time.perf_counter(), list[Recognition]()
        for samples in recordings:
            stream = recognizer.create_stream()
            stream.accept_waveform(SAMPLE_RATE, np.ascontiguousarray(samples, np.float32))
            with captured_stderr() as logs:
                recognizer.decode_stream(stream)
            if "exception" in logs[0].lower():
                raise ModelError(f"{self.source}: {NAME} failed on a recording of {len(samples) / SAMPLE_RATE:.1f} s ({_reason(logs[0])})")
            result = stream.result
            found.append(
                Recognition(
                    text=result.text.strip(),
                    tokens=(),
                    ended=self._ended(result, len(samples)),
                    language=result.lang.strip("<|>") or None,
                )
            )
        return RecognitionBatch(recognitions=found, encoder_s=0.0, decoder_s=time.perf_counter() - began)

    def _ended(self, result: Any, samples: int) -> bool:
        """Whether fewer tokens came than sherpa-onnx lets pass. Tokens that are parts of a letter cannot be counted: then True."""
        try:
            count = len(result.tokens)
        except UnicodeDecodeError:
            return True
        return count < min(int((samples + SHIFT // 2) // SHIFT * SHIFT / SAMPLE_RATE * TOKENS_PER_SECOND[self.family]), self._most_tokens)


def _reason(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if "exception" not in line.lower()), lines[0])


def _require_sherpa() -> tuple[Any, Any]:
    try:
        import onnx
        import sherpa_onnx
    except ImportError as exc:
        raise MissingDependencyError("running sherpa-onnx needs the package sherpa-onnx; pip install 'sottovoce[sherpa]'") from exc
    return sherpa_onnx, onnx
