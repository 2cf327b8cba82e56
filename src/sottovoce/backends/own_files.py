"""Which files of an exported folder sottovoce wrote: only those are replaced, and only those are uploaded."""

from pathlib import Path

from sottovoce.backends.backend import Backend
from sottovoce.checkpoint.layout import CARD
from sottovoce.errors import SottovoceError

CARD_MARK = "written by [sottovoce](https://pypi.org/project/sottovoce/)"  # in the card that an upload adds


def own_files(folder: Path, backend: Backend) -> set[str]:
    """Return the names of what sottovoce writes into an exported folder: the backend's files, and the card where it is ours."""
    names = set(backend.files())
    return names | {CARD} if _is_own_card(folder / CARD) else names


def names_its_origin(folder: Path, backend: Backend) -> bool:
    """Whether an exported folder says of itself that it was written from a quantized folder. Raises `MissingDependencyError`."""
    try:
        return backend.origin is not None and backend.origin(folder) is not None
    except SottovoceError:
        raise
    except Exception:  # noqa: BLE001 - the readers of files raise many kinds for damaged ones
        return False


def _is_own_card(card: Path) -> bool:
    return card.is_file() and CARD_MARK in card.read_text(encoding="utf-8", errors="replace")
