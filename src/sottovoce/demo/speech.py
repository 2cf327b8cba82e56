"""Sentences to speech: a small synthetic voice, and noise, offline."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.errors import MissingDependencyError, OutputError

VOICE_RATE = 24_000  # Hz
VOICE_VERSION = "0.2.1"
SNRS_DB = (None, 10.0, 5.0, 0.0)  # noisy sentences take turns: clean, then ever more noise


class Voice:
    """The voice of `hibari-tts`. Raises `MissingDependencyError` without it."""

    def __init__(self) -> None:
        try:
            from hibari import Hibari
        except ImportError as exc:
            raise MissingDependencyError(
                f"the demo speaks with hibari-tts; install it with: pip install hibari-tts=={VOICE_VERSION}"
            ) from exc
        self._voice: Any = Hibari()

    def say(self, text: str, seed: int) -> np.ndarray:
        """16 kHz, float32. The same text and seed give the same samples."""
        samples = np.asarray(self._voice(text, seed=seed), dtype=np.float32)
        return np.asarray(soxr.resample(samples, VOICE_RATE, SAMPLE_RATE), dtype=np.float32)


def write_speech(folder: Path | str, name: str, sentences: Sequence[str], *, noisy: bool, with_texts: bool) -> Path:
    """Speak `sentences` into `folder` (unless they are there already) and return the manifest's path.

    `noisy`: three out of four carry noise 10, 5 and 0 dB below the speech. `with_texts`: the manifest says what is said. The same
    sentences give the same samples. Raises `MissingDependencyError` without `hibari-tts`, and `OutputError` if `folder` holds
    something else.
    """
    folder = Path(folder)
    manifest = folder / "manifest.jsonl"
    if manifest.is_file():
        return manifest
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(f"{folder}: is there already and holds no speech of the demo (no manifest.jsonl); give another --out")
    voice = Voice()
    folder.parent.mkdir(parents=True, exist_ok=True)
    build = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        rows = []
        for i, text in enumerate(sentences):
            samples = voice.say(text, seed=i)
            snr_db = SNRS_DB[i % len(SNRS_DB)] if noisy else None
            if snr_db is not None:
                samples = add_noise(samples, snr_db, seed=i)
            audio = f"{name}-{i:02d}.flac"
            soundfile.write(build / audio, samples / max(1.0, float(np.abs(samples).max())), SAMPLE_RATE)
            rows.append({"id": f"{name}-{i:02d}", "audio": audio, "snr_db": snr_db} | ({"text": text} if with_texts else {}))
        (build / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        try:
            build.rename(folder)
        except OSError:  # another demo has just spoken the same
            if not manifest.is_file():
                raise
    finally:
        shutil.rmtree(build, ignore_errors=True)
    return manifest


def add_noise(samples: np.ndarray, snr_db: float, seed: int) -> np.ndarray:
    """Speech with pink noise (power falling with frequency, like a busy room) at `snr_db` decibels below it, float32."""
    generator = np.random.default_rng(seed)
    spectrum = np.fft.rfft(generator.standard_normal(len(samples)))
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(samples))
    gain = np.sqrt(np.mean(samples**2) / np.mean(noise**2) / 10 ** (snr_db / 10))
    return np.asarray(samples + gain * noise, dtype=np.float32)
