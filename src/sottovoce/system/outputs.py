"""Outputs, looked at before any work: whether they can be written, and what they would replace."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sottovoce.errors import OutputError, SottovoceError


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """What a written file holds. `title`: in words, with its article; `holds`: whether a file that is there holds it, so that it may be
    replaced."""

    title: str
    holds: Callable[[Path], bool]


def read_by(reader: Callable[[Path], object]) -> Callable[[Path], bool]:
    """Return what tells whether a file holds what `reader` reads: whether that raises no `SottovoceError`."""

    def holds(path: Path) -> bool:
        try:
            reader(path)
        except SottovoceError:
            return False
        return True

    return holds


Output = tuple[str | Path | None, FileKind]  # None: the file was not asked for


def check_outputs(outputs: Sequence[Output], *, reserved: Iterable[Path] = (), folders: Iterable[Path] = ()) -> None:
    """Raise `OutputError` for a file that cannot be written, or that would replace something else than an earlier output of its kind.

    `reserved`: other files that the command reads or writes; `folders`: of models, in which nothing else is written.
    """
    wanted = [(given, kind) for given, kind in outputs if given is not None]
    if not wanted:
        return
    taken = {place.resolve() for place in reserved}
    models = [folder.resolve() for folder in folders]
    for given, kind in wanted:
        try:
            path = Path(given).expanduser().absolute()
            place = path.resolve()
            if place in taken:
                raise OutputError(f"{given}: the same command reads or writes this file already; give another name")
            if inside := [folder for folder in models if place.is_relative_to(folder)]:
                raise OutputError(f"{given}: lies in {inside[0]}, the folder of a model, where nothing else is written; give another name")
            _check_place(path, given, kind)
        except (OSError, ValueError) as exc:  # a name that is too long, or has characters that no name may have
            raise OutputError(f"{given}: cannot be written ({exc}); give another name") from exc
        taken.add(place)


def _check_place(path: Path, given: str | Path, kind: FileKind) -> None:
    if path.is_dir():
        raise OutputError(f"{given}: is a folder, and {kind.title} is to be written; give the name of a file")
    above = next(folder for folder in path.parents if folder.exists())  # what is missing below it is made
    if not above.is_dir():
        raise OutputError(f"{given}: {above} is a file, and a folder is wanted there; give another name")
    if not os.access(above, os.W_OK):
        raise OutputError(f"{given}: nothing may be written in {above}; give another name")
    if path.exists() and not (path.is_file() and (path.stat().st_size == 0 or kind.holds(path))):
        raise OutputError(f"{given}: is there already and is not {kind.title}, so it is not replaced; give another name")
