"""Any sound file to mono float32 at 16 kHz, or an error that names what is wrong with it."""

import hashlib
import io
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from sottovoce.data import containers
from sottovoce.data.files import is_file, shown_name
from sottovoce.errors import AudioError

SAMPLE_RATE = 16_000  # Hz
SHORTEST_S = 0.1
LONGEST_S = 12 * 3600
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz
BLOCK = 1 << 20  # samples read at a time
SPAN_SLACK_S = 0.5  # a segment may end so much after its recording: transcripts are rounded
SILENCE = 1e-5  # peak amplitude below which a recording holds nothing (-100 dBFS)
LOUDEST = 16.0  # times full scale: what masters and decoders go beyond 1 stays far below, whole numbers stored as floats lie above
CANCELLED = 1e-3  # of the channels' mean power: if the mean of the channels has less, they are each other's opposite (-30 dB)
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph", ".w64", ".caf")
UNREADABLE = (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError)


def read_audio(
    source: Path | str | bytes, *, name: str | None = None, span: tuple[float, float] | None = None, silence: bool = False
) -> np.ndarray:
    """Read a recording as float32 `[n_samples]`, mono, at 16 kHz.

    `source`: a sound file or video, or its bytes (then `name` stands for it in messages); `span`: only from start to end, in seconds (an
    infinite end is that of the recording); `silence`: it may hold nothing but silence.
    libsndfile reads it, or PyAV where that cannot (see `containers`). Channels are averaged; other rates are resampled with soxr (HQ).
    Raises `AudioError` if the file is missing, unreadable, ends before the span does, is shorter than 0.1 s or longer than 12 hours,
    silent, holds NaN or infinite samples or such as are no fractions of full scale, or if its channels cancel.
    """
    called = (name or "recording") if isinstance(source, bytes) else shown_name(source)
    if not isinstance(source, bytes) and not is_file(Path(source)):
        raise AudioError(f"{called}: no such file")
    try:
        samples, rate = _read_with_libsndfile(source, called, span)
    except (*UNREADABLE, OSError) as exc:
        if not _is_container(source):
            if _is_empty(source):
                raise AudioError(f"{called}: is empty (0 bytes)") from exc
            reason = getattr(exc, "error_string", exc)  # libsndfile's own message names the file as bytes
            more = "" if containers.decoder_installed() else ", and with sottovoce[av] those of phones and cameras"
            raise AudioError(
                f"{called}: cannot be read as audio ({reason}); any format libsndfile reads will do, as WAV or FLAC{more}"
            ) from exc
        samples, rate = _read_container(source, called, span)
    return check_audio(samples, rate, called, silence=silence)


def _is_empty(source: Path | str | bytes) -> bool:
    try:
        return not source if isinstance(source, bytes) else Path(source).stat().st_size == 0
    except OSError:
        return False


def _is_container(source: Path | str | bytes) -> bool:
    try:
        return containers.is_container(source)
    except OSError:
        return False


def duration_of(source: Path | str | bytes) -> float:
    """Read a recording's seconds from its header; 0 if that cannot be read."""
    try:
        return float(soundfile.info(_file(source)).duration)
    except (*UNREADABLE, OSError):
        return containers.container_duration(source)


def filled_up(samples: np.ndarray, count: int) -> np.ndarray:
    """Return a recording with silence behind it, float32, so that it has `count` samples at least."""
    return np.pad(np.ascontiguousarray(samples, np.float32), (0, max(0, count - len(samples))))


def _file(source: Path | str | bytes) -> Any:
    """What soundfile opens. It takes names as text only if they are UTF-8, and on POSIX any bytes."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return str(source) if os.name == "nt" else os.fsencode(source)


def _read_with_libsndfile(source: Path | str | bytes, called: str, span: tuple[float, float] | None) -> tuple[np.ndarray, int]:
    with soundfile.SoundFile(_file(source)) as file:
        rate = _checked_rate(file.samplerate, called)
        left = LONGEST_S * rate + 1
        if span is not None:
            start, end = _frames(span, rate, file.frames, called)
            file.seek(start)
            left = end - start
        return _mixed(_blocks_of(file, left), rate, called), rate


def _read_container(source: Path | str | bytes, called: str, span: tuple[float, float] | None) -> tuple[np.ndarray, int]:
    with containers.opened(source, called) as (blocks, rate):
        samples = _mixed(blocks, _checked_rate(rate, called), called)
    if span is not None:
        start, end = _frames(span, rate, samples.size, called)
        samples = samples[start:end]
    return samples, rate


def _checked_rate(rate: int, called: str) -> int:
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(f"{called}: a sample rate of {rate} Hz is not that of speech ({LOWEST_RATE} to {HIGHEST_RATE} Hz)")
    return rate


def _frames(span: tuple[float, float], rate: int, length: int, called: str) -> tuple[int, int]:
    """First and last frame of a span of a recording of `length` frames."""
    start, end = round(span[0] * rate), length if math.isinf(span[1]) else round(span[1] * rate)
    if end > length + rate * SPAN_SLACK_S or start > length:
        to = "its end" if math.isinf(span[1]) else f"{span[1]:.2f} s"
        raise AudioError(f"{called}: is {length / rate:.2f} s long, but a segment from {span[0]:.2f} s to {to} is wanted")
    return start, max(start, min(end, length))


def _blocks_of(file: soundfile.SoundFile, left: int) -> Iterator[np.ndarray]:
    """The next `left` frames `[n, n_channels]`, block by block: what a header claims is not believed."""
    size = max(1, BLOCK // file.channels)
    while left > 0 and len(block := file.read(min(size, left), dtype="float32", always_2d=True)):
        left -= len(block)
        yield block


def _mixed(blocks: Iterable[np.ndarray], rate: int, called: str) -> np.ndarray:
    """The mean of all channels. A small file may hold days of silence, and channels may cancel: both are refused."""
    mixed, length, power = list[np.ndarray](), 0, 0.0
    for block in blocks:
        length += len(block)
        if length > LONGEST_S * rate:
            raise AudioError(f"{called}: is longer than {LONGEST_S // 3600} hours; cut it into pieces")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named later
            mixed.append(block.mean(axis=1))
            if block.shape[1] > 1:
                power += float(np.square(block, dtype=np.float64).mean(axis=1).sum())
    samples = np.concatenate(mixed) if mixed else np.zeros(0, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        left = float(np.square(samples, dtype=np.float64).sum())
    if power > SILENCE**2 * samples.size and left < CANCELLED * power:
        raise AudioError(f"{called}: its channels cancel, each is the opposite of another; write one of them as a mono file")
    return samples


def check_audio(samples: np.ndarray, sample_rate: int, name: str, *, silence: bool = False) -> np.ndarray:
    """Check mono `samples` at `sample_rate` Hz and bring them to 16 kHz. Raises `AudioError`, calling the recording `name`."""
    if samples.size == 0:
        raise AudioError(f"{name}: holds no samples")
    duration_s = samples.size / sample_rate
    if duration_s < SHORTEST_S:
        raise AudioError(f"{name}: {duration_s:.3f} s is too short; at least {SHORTEST_S} s are needed")
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: holds NaN or infinite samples")
    peak = np.abs(samples).max()
    if peak > LOUDEST:
        raise AudioError(
            f"{name}: its samples reach {peak:g}, where full scale is 1: whole numbers stored as floats, or damage; divide them by "
            "their full scale (32768 for 16 bits), or store them as whole numbers"
        )
    if peak < SILENCE and not silence:
        raise AudioError(f'{name}: is silent (peak below {SILENCE:g}); if the recording is silent on purpose, set its text to ""')
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


def recording_hash(samples: np.ndarray) -> str:
    """Return what tells one recording from all others whatever it is called: 32 hex digits of the sha256 of its samples.

    `samples`: float32 `[n_samples]` at 16 kHz, as `read_audio` gives them. The same sound in another lossless file has the same hash.
    """
    return hashlib.sha256(np.ascontiguousarray(samples, dtype="<f4").tobytes()).hexdigest()[:32]
