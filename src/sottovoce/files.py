"""Outputs that appear under their name whole, or not at all."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sottovoce.errors import OutputError


@contextlib.contextmanager
def built_beside(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` to build it in; gone afterwards, whatever happens. Raises `OutputError`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        build = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as exc:
        raise OutputError(f"{target}: cannot be written ({exc.strerror}); choose another output") from exc
    try:
        yield build
    except OSError as exc:
        raise OutputError(f"{target}: writing failed ({exc}); nothing was changed") from exc
    finally:
        shutil.rmtree(build, ignore_errors=True)


def swap_in(built: Path, target: Path) -> None:
    """Rename `built` to `target`; what is there steps aside first and comes back if the rename fails."""
    if not target.is_dir():
        built.replace(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent)) / target.name
    target.rename(aside)
    try:
        built.rename(target)
    except OSError:
        aside.rename(target)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)
