"""How much memory the process has used, and how to keep what it frees while large tensors come and go."""

import contextlib
import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

# Parameters of glibc's mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
NEVER = -1
DURING = {MMAP_MAX: 0, TRIM_THRESHOLD: NEVER, TOP_PAD: 64 << 20}
AFTERWARDS = {MMAP_MAX: 65536, MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20, TOP_PAD: 128 << 10}


_depth = 0


def tells_memory() -> bool:
    """Tell whether this system says what a process has now, by which a peak can be foreseen (Linux)."""
    return Path("/proc/self/status").is_file()


def memory_bytes() -> int:
    """The memory the process has resident now (Linux)."""
    return _status("VmRSS")


def peak_memory_bytes() -> int:
    """The most memory the process has had resident so far."""
    if sys.platform.startswith("linux"):
        return _status("VmHWM")  # `ru_maxrss` counts what the parent had when it started this process
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def reset_peak_memory() -> None:
    """Let `peak_memory_bytes` begin anew from what the process has now, where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within this block, freed memory is used again instead of going back to the system (glibc; elsewhere nothing changes).

    Every activation of an audio encoder is tens of megabytes. By default each one is mapped afresh and cleared page by page
    by the kernel, which was measured to take a quarter of the calibration's time. When the outermost of nested blocks ends,
    all that is free is given back, and glibc's thresholds stand where large tensors would have moved them anyway.
    """
    global _depth
    _depth += 1
    if _depth == 1:
        _set(DURING)
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _set(AFTERWARDS)


def release_freed_memory() -> None:
    """Give what is free back to the system, also inside of `keep_freed_memory` (glibc; elsewhere nothing happens)."""
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def _set(parameters: dict[int, int]) -> None:
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    for parameter, value in parameters.items():
        library.mallopt(parameter, value)
    if parameters is AFTERWARDS:
        library.malloc_trim(0)
