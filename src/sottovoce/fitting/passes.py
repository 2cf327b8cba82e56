"""How much a fit has measured."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class Passes:
    """Forward passes of one utterance so far; of a pass from a block on, the share of the blocks that ran."""

    encoder: float = 0.0
    decoder: float = 0.0

    def add(self, encoder: float, decoder: float) -> None:
        """Count further passes."""
        self.encoder, self.decoder = self.encoder + encoder, self.decoder + decoder
