"""Which files a folder of recordings holds."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path


def is_file(path: Path) -> bool:
    """Whether there is a file at `path`; False also for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def shown_name(path: str | Path) -> str:
    """Return a path as text that any file can hold: bytes of a name that are no UTF-8 become `\\xe9`."""
    text = str(path).replace(os.sep, "/")
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a character, which no name on this system has
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_hidden(path: Path, root: Path) -> bool:
    """Whether `path`, or a folder between `root` and it, is hidden: `.DS_Store`, `._x.wav`, `.trash/x.wav`."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def visible_files(root: Path, pattern: str = "*") -> Iterator[Path]:
    """Yield the files below `root` that match `pattern` and are not hidden, by name."""
    for path in sorted(root.rglob(pattern)):
        if not is_hidden(path, root) and is_file(path):
            yield path


def counted_by_suffix(files: Iterable[Path]) -> str:
    """Say how many files there are of each suffix: "3 .txt, 1 .pdf"."""
    counts = Counter(file.suffix.lower() or "without a suffix" for file in files)
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
