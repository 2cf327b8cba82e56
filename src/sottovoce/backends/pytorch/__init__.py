"""PyTorch in this package: runs every model and every number format, with decoded weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sottovoce.backends.backend import Backend
from sottovoce.quantization.target import Target

if TYPE_CHECKING:
    from sottovoce.evaluation.recognizer import Recognizer

NAME = "torch"


def _open(model: str, _threads: int) -> Recognizer:
    from sottovoce.checkpoint.load import load
    from sottovoce.evaluation.recognizer import TorchRecognizer

    return TorchRecognizer(load(model))


PYTORCH = Backend(
    name=NAME,
    title="PyTorch (this package)",
    target=Target(name=NAME, refusal=lambda *_: None),
    open=_open,
)
