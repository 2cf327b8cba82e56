"""What of a path is written down."""

from pathlib import Path


def last_part(path: str | Path) -> str:
    """Return the last part of a path, which says nothing of the machine; of "." and "..", that of the folder they stand for."""
    place = Path(path).expanduser()
    return place.name if place.name not in ("", "..") else place.resolve().name
