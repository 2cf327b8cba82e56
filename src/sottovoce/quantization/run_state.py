"""What a run has finished so far. In memory here; `checkpoint.resume` keeps it on disk, so that a stopped run can go on."""

from collections.abc import Mapping, Sequence

from sottovoce.quantization.layer import LayerResult


class RunState:
    """Calibration transcripts by recording, and finished layers by name in the order they were finished."""

    def __init__(self) -> None:
        self._transcripts: dict[str, tuple[int, ...]] = {}
        self._layers: dict[str, LayerResult] = {}

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
