"""What a run has finished so far. In memory here; `checkpoint.resume` keeps it on disk, so that a stopped run can go on."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sottovoce.quantization.layer import LayerResult


class RunState:
    """Calibration transcripts by recording, and finished layers by name in the order they were finished."""

    def __init__(self) -> None:
        self._transcripts: dict[str, tuple[int, ...]] = {}
        self._layers: dict[str, LayerResult] = {}
        self._tensors: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {}

    def transcripts(self) -> dict[str, tuple[int, ...]]:
        """Return the calibration transcripts made so far, as token ids."""
        return dict(self._transcripts)

    def add_transcripts(self, made: Mapping[str, Sequence[int]]) -> None:
        """Add calibration transcripts."""
        self._transcripts |= {name: tuple(tokens) for name, tokens in made.items()}

    def finished_layers(self) -> dict[str, LayerResult]:
        """Return the layers that are finished."""
        return dict(self._layers)

    def add_layer(self, name: str, result: LayerResult) -> None:
        """Add the next finished layer."""
        self._layers[name] = result

    def tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors that were set last under `name`, with the plain data about them; None: there are none."""
        return self._tensors.get(name)

    def set_tensors(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Set tensors under `name` in place of those before: how far a loop has come. `about`: plain data."""
        self._tensors[name] = ({key: tensor.clone() for key, tensor in tensors.items()}, dict(about))
