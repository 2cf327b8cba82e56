"""How long work tells what it is doing."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""


def silent(_doing: str, _done: int, _total: int) -> None:
    """A `Progress` that shows nothing."""
