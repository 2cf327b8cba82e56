"""What a runtime's file can hold, as far as planning must know it. Each backend has one (see `backends`)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sottovoce.errors import RecipeError

if TYPE_CHECKING:
    from sottovoce.core.affine import Affine, Observer
    from sottovoce.core.affine_minimum import AffineMinimum
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
    real_minimum: bool = False  # even steps have a real minimum for each group by default, not a whole zero point
    one_format: bool = False  # all layers must have the same format, head included
    beside_float: bool = False  # with `one_format`: layers may also stay in floating point
    int8_rows: bool = False  # has a faster product for 8-bit layers with one symmetric scale a row
    fused: tuple[tuple[str, ...], ...] = ()  # layers of one block, by the last part of their names, that the runtime runs as one
    rounds_activations: bool = False  # kernels round the inputs of a product to 8 bits

    def misfit(self, number_format: "NumberFormat", part: "Part", in_features: int) -> str | None:
        """Return why layers with rows of `in_features` cannot have this format, undivided blocks included; None: they can."""
        try:
            number_format.block_size(in_features)
        except RecipeError as exc:
            return str(exc)
        return self.refusal(number_format, part, in_features)

    def nearest_fitting(self, number_format: "NumberFormat", layers: "Iterable[tuple[Part, int]]") -> str | None:
        """Return the named format that holds all `layers` (part, columns of a row) and is nearest in size, in words; None: no one does."""
        from sottovoce.core.formats import COMMON_WIDTH, EXPERIMENTS, NAMED

        kinds = set(layers)
        sizes = {
            name: known.bits_per_weight(COMMON_WIDTH)
            for name, known in NAMED.items()
            if known != number_format
            and not isinstance(known, EXPERIMENTS)
            and all(self.misfit(known, part, width) is None for part, width in kinds)
        }
        if not sizes:
            return None
        wanted = number_format.bits_per_weight(COMMON_WIDTH)
        name = min(sizes, key=lambda known: abs(sizes[known] - wanted))
        return f"{name}, {sizes[name]:.4g} bits per weight"

    def format(
        self,
        *,
        bits: int = 4,
        group_size: int | None = 32,
        symmetric: bool | None = None,
        observer: "Observer" = "mse",
    ) -> "Affine | AffineMinimum":
        """Return the affine grid of this target, with what is given in place of its defaults. Raises `RecipeError`."""
        from sottovoce.core.affine import MAX_FLOAT16_MIN_BITS, Affine
        from sottovoce.core.affine_minimum import AffineMinimum

        if self.real_minimum and not symmetric:
            if group_size is None:
                raise RecipeError(f"{self.name} has no groups of a whole row; choose 32, 64 or 128 weights")
            if observer != "mse":
                raise RecipeError(
                    f"a real minimum is always fitted to the least rounding error, not by {observer!r}; leave the observer out"
                )
            return AffineMinimum(bits=bits, group_size=group_size)
        if symmetric is None:  # ggml's 8-bit blocks have no minimum
            symmetric = self.symmetric or (self.float16_min and bits > MAX_FLOAT16_MIN_BITS)
        return Affine(
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            observer=observer,
            float16_min=self.float16_min,  # also for rules that make single layers asymmetric
        )
