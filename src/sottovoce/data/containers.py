"""Recordings in the containers of phones, browsers and cameras (m4a, webm, mp4, amr, ...), decoded by PyAV where it is installed."""

import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.errors import AudioError

# What libsndfile does not read. (.ts is read as well, but a folder may hold programs of that suffix.)
CONTAINER_SUFFIXES = (
    ".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".qt", ".aac", ".amr", ".awb", ".3gp", ".3gpp", ".3g2", ".wma", ".wmv", ".asf",
    ".webm", ".weba", ".mkv", ".mka", ".avi", ".flv", ".mpg", ".mpeg", ".m2ts", ".mts", ".ogv", ".ac3", ".wv", ".ape", ".tta",
)  # fmt: skip
INSTALL = "install it (pip install 'sottovoce[av]'), or convert the recordings to WAV or FLAC"
MPEG4_BRAND = slice(4, 8)
PCM_TAGS = (1, 3, 0xFFFE)  # of a WAV file: whole numbers, floats, extensible
STARTS = (
    b"\x1aE\xdf\xa3",  # Matroska and WebM
    b"0&\xb2u\x8ef\xcf\x11",  # ASF: wma, wmv
    b"#!AMR",
    b"\xff\xf1", b"\xff\xf9",  # AAC as a bare stream
    b"\x0bw",  # AC-3
    b"FLV",
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"wvpk", b"MAC ", b"TTA1",
)  # fmt: skip


def decoder_installed() -> bool:
    """Whether PyAV is there."""
    return importlib.util.find_spec("av") is not None


def is_container(source: Path | str | bytes) -> bool:
    """Whether `source` (a file, or its bytes) is a container by its first bytes or its suffix."""
    if isinstance(source, bytes):
        head = source[:32]
    else:
        if Path(source).suffix.lower() in (*CONTAINER_SUFFIXES, ".ts"):
            return True
        with open(source, "rb") as file:
            head = file.read(32)
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI " or (head[8:16] == b"WAVEfmt " and int.from_bytes(head[20:22], "little") not in PCM_TAGS)
    return head[MPEG4_BRAND] in (b"ftyp", b"moov", b"mdat", b"wide") or head.startswith(STARTS)


@contextmanager
def opened(source: Path | str | bytes, called: str) -> Iterator[tuple[Iterator[np.ndarray], int]]:
    """Open the best sound track of a container: blocks of samples `[n, n_channels]`, float32, and their rate in Hz.

    Raises `AudioError`, calling the recording `called`, if PyAV is not installed, the file cannot be decoded to its end, or there is
    no sound in it.
    """
    if not decoder_installed():
        raise AudioError(f"{called}: cannot be read without PyAV; {INSTALL}")
    import av

    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), metadata_errors="ignore") as container:
            track = container.streams.best("audio")
            if track is None:
                raise AudioError(f"{called}: holds no sound track")
            blocks = _blocks(container, track, av.AudioResampler(format="fltp"))
            first, rate = next(blocks, (np.zeros((0, 1), np.float32), 0))
            if not rate:
                raise AudioError(f"{called}: holds no samples")
            yield _with_first(first, blocks), rate
    except (av.FFmpegError, UnicodeDecodeError, ValueError) as exc:
        raise AudioError(f"{called}: cannot be decoded ({exc}); convert it to WAV or FLAC") from exc


def _blocks(container: Any, track: Any, to_floats: Any) -> Iterator[tuple[np.ndarray, int]]:
    """All of the track in one rate and number of channels, those of its first frame; and that rate."""
    for frame in container.decode(track):
        for converted in to_floats.resample(frame):
            yield converted.to_ndarray().T, converted.sample_rate
    for converted in to_floats.resample(None):
        yield converted.to_ndarray().T, converted.sample_rate


def _with_first(first: np.ndarray, rest: Iterator[tuple[np.ndarray, int]]) -> Iterator[np.ndarray]:
    yield first
    for block, _ in rest:
        yield block


def container_duration(source: Path | str | bytes) -> float:
    """Read a container's seconds from its header; 0 where it does not say, or PyAV is not installed."""
    if not decoder_installed():
        return 0.0
    import av

    try:
        container: Any
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), metadata_errors="ignore") as container:
            return float((container.duration or 0) / av.time_base)
    except (av.FFmpegError, UnicodeDecodeError, ValueError):
        return 0.0
