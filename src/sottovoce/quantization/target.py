"""What a runtime's file can hold, as far as planning must know it. Each backend has one (see `backends`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sottovoce.core.affine import Affine, Observer
    from sottovoce.core.number_format import NumberFormat
    from sottovoce.models.layers import Part


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime as a target of quantization.

    `refusal(format, part, in_features)`: a sentence that says why a layer in this format cannot be stored, and what can; None: it can.
    """

    name: str
    refusal: "Callable[[NumberFormat, Part, int], str | None]"
    symmetric: bool = False  # whether affine grids have no zero points by default
    float16_min: bool = False  # asymmetric groups are stored with a float16 minimum
    one_format: bool = False  # all layers must have the same format, head included
    int8_rows: bool = False  # has a faster product for 8-bit layers with one symmetric scale a row
    fused: tuple[tuple[str, ...], ...] = ()  # layers of one block, by the last part of their names, that the runtime runs as one
    rounds_activations: bool = False  # kernels round the inputs of a product to 8 bits

    def format(
        self,
        *,
        bits: int = 4,
        group_size: int | None = 32,
        symmetric: bool | None = None,
        observer: "Observer" = "mse",
    ) -> "Affine":
        """Return the affine grid of this target, with what is given in place of its defaults. Raises `RecipeError`."""
        from sottovoce.core.affine import MAX_FLOAT16_MIN_BITS, Affine

        if symmetric is None:  # ggml's 8-bit blocks have no minimum
            symmetric = self.symmetric or (self.float16_min and bits > MAX_FLOAT16_MIN_BITS)
        return Affine(
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            observer=observer,
            float16_min=self.float16_min,  # also for rules that make single layers asymmetric
        )
