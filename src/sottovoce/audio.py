"""Any sound file to mono float32 at 16 kHz, or an error that names what is wrong with it."""

from pathlib import Path

import numpy as np
import soundfile
import soxr

from sottovoce.errors import AudioError

SAMPLE_RATE = 16_000  # Hz
SHORTEST_S = 0.1
SILENCE = 1e-5  # peak amplitude below which a recording holds nothing (-100 dBFS)
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph", ".w64", ".caf")


def read_audio(path: Path | str) -> np.ndarray:
    """The recording as float32 `[n_samples]`, mono, at 16 kHz.

    Channels are averaged; other rates are resampled with soxr (HQ). Raises `AudioError` if the file is missing, unreadable,
    shorter than 0.1 s, silent, or holds NaN or infinite samples.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError) as exc:
        raise AudioError(
            f"{path}: cannot be read as audio ({exc}); any format libsndfile reads will do, as WAV or FLAC"
        ) from exc
    return check_audio(samples.mean(axis=1), rate, str(path))


def check_audio(samples: np.ndarray, sample_rate: int, name: str) -> np.ndarray:
    """Mono `samples` at `sample_rate` Hz, checked and brought to 16 kHz. Raises `AudioError`, calling the recording `name`."""
    if samples.size == 0:
        raise AudioError(f"{name}: holds no samples")
    duration_s = samples.size / sample_rate
    if duration_s < SHORTEST_S:
        raise AudioError(f"{name}: {duration_s:.3f} s is too short; at least {SHORTEST_S} s are needed")
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: holds NaN or infinite samples")
    if np.abs(samples).max() < SILENCE:
        raise AudioError(f"{name}: is silent (peak below {SILENCE:g})")
    if sample_rate != SAMPLE_RATE:
        samples = soxr.resample(samples, sample_rate, SAMPLE_RATE)
    return np.ascontiguousarray(samples, dtype=np.float32)


def split_at_silence(samples: np.ndarray, longest_s: float) -> list[np.ndarray]:
    """Cut `samples` (16 kHz mono) into pieces of at most `longest_s` seconds, each cut at the quietest 50 ms of its last third."""
    longest, window = int(longest_s * SAMPLE_RATE), SAMPLE_RATE // 20
    pieces = []
    while samples.size > longest:
        start = longest * 2 // 3
        energy = np.convolve(samples[start:longest].astype(np.float64) ** 2, np.ones(window), mode="valid")
        cut = start + int(energy.argmin()) + window // 2
        pieces.append(samples[:cut])
        samples = samples[cut:]
    if samples.size >= SHORTEST_S * SAMPLE_RATE or not pieces:
        pieces.append(samples)
    return pieces
