"""Languages in the runtimes: each takes what PyTorch takes, and refuses what it refuses. The runtimes themselves are pretended."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sottovoce.backends.crispasr.runtime import CrispAsrRecognizer
from sottovoce.backends.mlx.runtime import MlxRecognizer
from sottovoce.backends.openai_vocabulary import languages_of
from sottovoce.backends.sherpa_onnx.runtime import SherpaRecognizer
from sottovoce.backends.transcribe_cpp.runtime import TranscribeCppRecognizer
from sottovoce.backends.whisper_cpp.runtime import WhisperCppRecognizer
from sottovoce.errors import ModelError
from sottovoce.evaluation.recognizer import Recognition
from sottovoce.models.languages import world_languages

CODES = ("en", "de", "fr")
SAMPLES = np.zeros(1600, np.float32)
Heard = tuple[Any, list[str | None]]


def whisper_cpp() -> Heard:
    recognizer, told = WhisperCppRecognizer.__new__(WhisperCppRecognizer), list[str | None]()
    recognizer._calls, recognizer._end = SimpleNamespace(whisper_full_n_segments=lambda _: 0), 0
    recognizer._whole = SimpleNamespace(transcribe=lambda *_, language, **__: told.append(language) or [], _ctx=None)
    return recognizer, told


def transcribe_cpp() -> Heard:
    recognizer, told = TranscribeCppRecognizer.__new__(TranscribeCppRecognizer), list[str | None]()
    times = SimpleNamespace(mel_ms=0, encode_ms=0, decode_ms=0)
    result = SimpleNamespace(text="", tokens=[], timings=times)
    recognizer._session = SimpleNamespace(run=lambda *_, language, **__: told.append(language) or result)
    recognizer._library, recognizer._options = SimpleNamespace(errors=SimpleNamespace(OutputTruncated=OSError)), {}
    return recognizer, told


def mlx() -> Heard:
    recognizer, told = MlxRecognizer.__new__(MlxRecognizer), list[str | None]()
    silence = Recognition(text="", tokens=(), ended=True)
    recognizer.states = lambda _: None  # type: ignore[method-assign]
    recognizer._decoded = lambda _, language: told.append(language) or silence  # type: ignore[method-assign]
    return recognizer, told


def sherpa() -> Heard:
    recognizer, told = SherpaRecognizer.__new__(SherpaRecognizer), list[str | None]()
    stream = SimpleNamespace(accept_waveform=lambda *_: None, result=SimpleNamespace(text="", lang="", tokens=[]))
    runtime = SimpleNamespace(create_stream=lambda: stream, decode_stream=lambda _: None)
    recognizer.family, recognizer._most_tokens = "whisper", 100
    recognizer._recognizer = lambda language: told.append(language) or runtime  # type: ignore[method-assign]
    return recognizer, told


def crispasr() -> Heard:
    recognizer, told = CrispAsrRecognizer.__new__(CrispAsrRecognizer), list[str | None]()
    recognizer._names = {code: code for code in CODES}
    recognizer._session = SimpleNamespace(transcribe=lambda *_, language: told.append(language) or [])
    return recognizer, told


DETECTED = {whisper_cpp: "auto", sherpa: ""}  # how a runtime is told to find out; None where it is told nothing


@pytest.mark.parametrize("make", [whisper_cpp, transcribe_cpp, mlx, sherpa, crispasr])
def test_every_runtime_takes_what_pytorch_takes(make: Callable[[], Heard]) -> None:
    recognizer, told = make()
    recognizer.source, recognizer.languages, recognizer.detects_languages = "m", CODES, True
    for asked in (None, "en", "German", "de-DE", "FR", "auto"):
        recognizer.recognize([SAMPLES], asked)
    assert told == ["en", "en", "de", "de", "fr", DETECTED.get(make)]
    with pytest.raises(ModelError, match="m: language 'es' is not one this model knows: de, en, fr"):
        recognizer.recognize([SAMPLES], "es")


@pytest.mark.parametrize("make", [whisper_cpp, transcribe_cpp, mlx, sherpa])
def test_an_english_model_refuses_another_language(make: Callable[[], Heard]) -> None:
    recognizer, told = make()
    recognizer.source, recognizer.languages, recognizer.detects_languages = "m", ("en",), False
    for asked in (None, "English", "auto"):
        recognizer.recognize([SAMPLES], asked)
    assert set(told) <= {"en", None}
    with pytest.raises(ModelError, match=r"m: transcribes English \(en\) only, and language 'de' was asked for"):
        recognizer.recognize([SAMPLES], "de")


def test_openais_vocabularies_tell_their_languages() -> None:
    assert languages_of(51864) == ("en",)
    assert languages_of(51865) == tuple(world_languages())[:99]
    assert languages_of(51866) == tuple(world_languages())
