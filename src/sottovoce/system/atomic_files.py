"""Outputs that appear under their name whole, or not at all."""

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from sottovoce.errors import OutputError

LEFTOVER = "sottovoce-"  # in the names of what is beside an output while it is made
PARTIAL = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # what a text file is called until all of it is written
FULL_BYTES = 1 << 20  # what is left on a disk that is full
EXCHANGE, AT_CURRENT = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of renameat2(2)


def real_place(output: str | Path) -> Path:
    """Return the whole path of an output. Of a link that is the place it points to: exchanged by its name, it would be a link no more."""
    path = Path(output).expanduser().absolute()
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def built_beside(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` to build it in; gone afterwards, whatever happens. Raises `OutputError`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        build = Path(tempfile.mkdtemp(prefix=f".{target.name}.{LEFTOVER}", dir=target.parent))
    except OSError as exc:
        raise OutputError(f"{target}: cannot be written ({exc.strerror}); choose another output") from exc
    try:
        yield build
    except (OSError, SafetensorError) as exc:  # the second is how safetensors reports a full disk
        raise OutputError(f"{target}: writing failed ({_why(exc, target.parent)}); nothing was changed") from exc
    finally:
        shutil.rmtree(build, ignore_errors=True)


def _why(exc: Exception, folder: Path) -> str:
    """Say why writing failed. Where a library does not tell the system's error (numpy on a full disk), the room that is left tells."""
    if isinstance(exc, OSError) and exc.errno is None and shutil.disk_usage(folder).free < FULL_BYTES:
        return f"{exc}; no space left on the device"
    return str(exc)


def clear_leftovers(target: Path) -> None:
    """Remove what killed runs left beside `target`; an output that was just stepping aside comes back. Only under a lock."""
    for leftover in target.parent.glob(f".{target.name}.{LEFTOVER}*"):
        aside = leftover / target.name
        if leftover.name.startswith(f".{target.name}.{LEFTOVER}old") and aside.exists() and not target.exists():
            aside.rename(target)
        shutil.rmtree(leftover, ignore_errors=True)


def swap_in(built: Path, target: Path) -> None:
    """Rename `built` to `target`; what is there goes away. Where the system can exchange two names, `target` is never missing."""
    if not target.is_dir():
        built.replace(target)
        return
    if _exchange(built, target):
        return  # the old content now lies in the building folder and goes with it
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.{LEFTOVER}old.", dir=target.parent)) / target.name
    target.rename(aside)
    try:
        built.rename(target)
    except OSError:
        aside.rename(target)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names by renameat2(2); False where that cannot be done."""
    library = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
    if library is None or not hasattr(library, "renameat2"):
        return False
    return bool(library.renameat2(AT_CURRENT, os.fsencode(one), AT_CURRENT, os.fsencode(other), EXCHANGE) == 0)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name only when all is written and on the disk; where the name is a link, at its end."""
    path = real_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes. Raises `OSError`."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
