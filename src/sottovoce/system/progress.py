"""How long work tells what it is doing."""

from typing import Protocol


class Progress(Protocol):
    """What long work calls at every step: with the kind of work, the steps done and their number, and what is done right now.

    Steps of one `kind` are of one count ("layers"); `detail` changes from step to step (the layer's name), empty if there is none to tell.
    """

    def __call__(self, kind: str, done: int, total: int, detail: str = "", /) -> None: ...


def silent(_kind: str, _done: int, _total: int, _detail: str = "", /) -> None:
    """A `Progress` that shows nothing."""


LAYERS = "layers"  # a kind of work that several methods have
