"""What lies in a folder beside the files that were written there."""

import re
from collections.abc import Collection
from pathlib import Path

from sottovoce.system.atomic_files import PARTIAL

OF_THE_HUB = re.compile(r"\.gitattributes|\.cache/huggingface/.*")  # what it and its client add to a folder


def other_files(folder: Path, written: Collection[str]) -> list[str]:
    """Return the names of the files in `folder` and below that are not `written`, sorted, with "/" between their parts.

    What the Hub and its client add is left out, and what a stopped run left of one that it was writing.
    """
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(folder).as_posix() for path in files)
    return sorted(name for name in names if not (name in written or OF_THE_HUB.fullmatch(name) or _is_part(name, written)))


def _is_part(name: str, written: Collection[str]) -> bool:
    begun = PARTIAL.fullmatch(name)
    return begun is not None and begun[1] in written
