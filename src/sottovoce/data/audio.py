"""Any sound file to mono float32 at 16 kHz, or an error that names what is wrong with it."""

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr

from sottovoce.errors import AudioError

SAMPLE_RATE = 16_000  # Hz
SHORTEST_S = 0.1
LONGEST_S = 12 * 3600
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz
BLOCK = 1 << 20  # samples read at a time
SPAN_SLACK_S = 0.5  # a segment may end so much after its recording: transcripts are rounded
SILENCE = 1e-5  # peak amplitude below which a recording holds nothing (-100 dBFS)
LOUDEST = 1e9  # far beyond recordings whose full scale is that of 16-bit numbers
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph", ".w64", ".caf")


def read_audio(source: Path | str | bytes, *, name: str | None = None, span: tuple[float, float] | None = None) -> np.ndarray:
    """The recording as float32 `[n_samples]`, mono, at 16 kHz.

    `source`: a sound file, or its bytes (then `name` stands for it in messages); `span`: only from start to end, in seconds.
    Channels are averaged; other rates are resampled with soxr (HQ). Raises `AudioError` if the file is missing, unreadable,
    ends before the span does, is shorter than 0.1 s or longer than 12 hours, silent, or holds NaN or infinite samples.
    """
    if isinstance(source, bytes):
        called = name or "recording"
    else:
        called = str(source)
        if not Path(source).is_file():
            raise AudioError(f"{called}: no such file")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            rate, frames = file.samplerate, None
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise AudioError(f"{called}: a sample rate of {rate} Hz is not that of speech ({LOWEST_RATE} to {HIGHEST_RATE} Hz)")
            if span is not None:
                start, end = (round(second * rate) for second in span)
                if end > file.frames + rate * SPAN_SLACK_S:
                    raise AudioError(
                        f"{called}: is {file.frames / rate:.2f} s long, but a segment from {span[0]:.2f} s to {span[1]:.2f} s is wanted"
                    )
                file.seek(min(start, file.frames))
                frames = max(0, min(end, file.frames) - start)
            samples = _read_mixed(file, frames, called)
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError) as exc:
        raise AudioError(f"{called}: cannot be read as audio ({exc}); any format libsndfile reads will do, as WAV or FLAC") from exc
    return check_audio(samples, rate, called)


def _read_mixed(file: soundfile.SoundFile, frames: int | None, called: str) -> np.ndarray:
    """The next `frames` frames (all if None), channels averaged. Block by block: what a header claims is not believed, and a small
    file may hold days of silence."""
    blocks, size, most = list[np.ndarray](), max(1, BLOCK // file.channels), LONGEST_S * file.samplerate
    left = most + 1 if frames is None else frames
    while left > 0 and len(block := file.read(min(size, left), dtype="float32", always_2d=True)):
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named later
            blocks.append(block.mean(axis=1))
        left -= len(block)
    if frames is None and left == 0:
        raise AudioError(f"{called}: is longer than {LONGEST_S // 3600} hours; cut it into pieces")
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def check_audio(samples: np.ndarray, sample_rate: int, name: str) -> np.ndarray:
    """Mono `samples` at `sample_rate` Hz, checked and brought to 16 kHz. Raises `AudioError`, calling the recording `name`."""
    if samples.size == 0:
        raise AudioError(f"{name}: holds no samples")
    duration_s = samples.size / sample_rate
    if duration_s < SHORTEST_S:
        raise AudioError(f"{name}: {duration_s:.3f} s is too short; at least {SHORTEST_S} s are needed")
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: holds NaN or infinite samples")
    if np.abs(samples).max() > LOUDEST:
        raise AudioError(f"{name}: holds samples of {np.abs(samples).max():g}, where full scale is 1; it is damaged")
    if np.abs(samples).max() < SILENCE:
        raise AudioError(f"{name}: is silent (peak below {SILENCE:g})")
    if sample_rate != SAMPLE_RATE:
        samples = soxr.resample(samples, sample_rate, SAMPLE_RATE)
    return np.ascontiguousarray(samples, dtype=np.float32)


def split_at_silence(samples: np.ndarray, max_duration_s: float) -> list[np.ndarray]:
    """Cut `samples` (16 kHz mono) into pieces of at most `max_duration_s` seconds, each cut at the quietest 50 ms of its last third."""
    longest, window = int(max_duration_s * SAMPLE_RATE), SAMPLE_RATE // 20
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
