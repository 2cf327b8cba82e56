"""The header of a whisper.cpp file, and a check of all that follows it."""

import math
import struct
from pathlib import Path
from typing import Any

from sottovoce.backends.ggml_types import BLOCK_TYPES, F16, F32
from sottovoce.backends.whisper_cpp import NAME
from sottovoce.errors import ExportError

MAGIC = 0x67676D6C


def read_header(file: Path) -> tuple[int, ...]:
    """The 11 numbers at the beginning of a file, after walking over all that follows.

    Raises `ExportError` for anything that does not fit to the end of the file: whisper.cpp ends the whole process on such files.
    """
    data = file.read_bytes() if file.is_file() else b""
    offset = 0

    def take(fmt: str) -> tuple[Any, ...]:
        nonlocal offset
        size = struct.calcsize(fmt)
        if offset + size > len(data):
            raise ExportError(f"{file}: is cut short or damaged at byte {offset}; export it again")
        offset += size
        return struct.unpack_from(fmt, data, offset - size)

    magic, *numbers = take("<I11i")
    if magic != MAGIC:
        raise ExportError(f"{file}: is not a file of whisper.cpp (magic {magic:#x}); export it again")
    n_mel, n_fft = take("<2i")
    if n_mel < 0 or n_fft < 0:
        raise ExportError(f"{file}: is damaged (filters of {n_mel} x {n_fft}); export it again")
    take(f"<{4 * n_mel * n_fft}x")
    (tokens,) = take("<i")
    for _ in range(max(0, tokens)):
        take(f"<{take('<I')[0]}x")
    sizes = {F32: (1, 4), F16: (1, 2)} | {kind.number: (kind.weights, kind.bytes) for kind in BLOCK_TYPES.values()}
    kinds = set()
    while offset < len(data):
        n_dims, length, kind = take("<3i")
        if not (1 <= n_dims <= 4 and 0 < length < 256 and kind in sizes):
            raise ExportError(f"{file}: is damaged at byte {offset}; export it again")
        shape = take(f"<{n_dims}i")
        take(f"<{length}x")
        per_block, n_bytes = sizes[kind]
        if min(shape) < 1 or shape[0] % per_block:
            raise ExportError(f"{file}: is damaged at byte {offset}; export it again")
        take(f"<{math.prod(shape) // per_block * n_bytes}x")
        if kind not in (F32, F16):
            kinds.add(kind)
    if len(kinds) > 1:
        raise ExportError(f"{file}: mixes block types, which whisper.cpp does not hold; export it again with --target {NAME}")
    return tuple(numbers)
