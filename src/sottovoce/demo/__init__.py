"""Speech for trying things out: sentences of this project's own, spoken by a small synthetic voice, offline."""

import json
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr

from sottovoce.audio import SAMPLE_RATE
from sottovoce.errors import MissingDependencyError

VOICE_RATE = 24_000  # Hz
VOICE_VERSION = "0.2.1"
SNRS_DB = (None, 10.0, 5.0, 0.0)  # test sentences take turns: clean, then ever more noise

Split = Literal["calibration", "test"]


def sentences(split: Split) -> list[str]:
    """The 48 sentences to calibrate on, or the 60 others to test on."""
    return files("sottovoce.demo").joinpath(f"{split}.txt").read_text(encoding="utf-8").splitlines()


def make_speech(folder: Path | str, split: Split) -> Path:
    """Speak the sentences of `split` into `folder` (unless they are there already) and return the manifest's path.

    Test sentences carry noise at 10, 5 and 0 dB below the speech, three out of four. The same text gives the same samples.
    Raises `MissingDependencyError` without `hibari-tts`.
    """
    folder = Path(folder)
    manifest = folder / "manifest.jsonl"
    if manifest.is_file():
        return manifest
    try:
        from hibari import Hibari
    except ImportError as exc:
        raise MissingDependencyError(
            f"the demo speaks with hibari-tts; install it with: pip install hibari-tts=={VOICE_VERSION}"
        ) from exc
    folder.parent.mkdir(parents=True, exist_ok=True)
    build = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        voice, rows = Hibari(), []
        for i, text in enumerate(sentences(split)):
            samples = soxr.resample(np.asarray(voice(text, seed=i), dtype=np.float32), VOICE_RATE, SAMPLE_RATE)
            snr_db = SNRS_DB[i % len(SNRS_DB)] if split == "test" else None
            if snr_db is not None:
                samples = add_noise(samples, snr_db, seed=i)
            name = f"{split}-{i:02d}.flac"
            soundfile.write(build / name, samples / max(1.0, float(np.abs(samples).max())), SAMPLE_RATE)
            # Calibration takes no text, as in real use: the model transcribes it itself.
            rows.append(
                {"id": f"{split}-{i:02d}", "audio": name, "snr_db": snr_db}
                | ({"text": text} if split == "test" else {})
            )
        (build / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        build.rename(folder)
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
