"""What to do with which layer: methods, grids, rules, and the plan they make for a model."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from sottovoce.core.affine import BITS, Grid
from sottovoce.errors import RecipeError
from sottovoce.quantization.methods import DEFAULT_METHOD, METHODS, Method
from sottovoce.quantization.target import TARGETS

ENCODER_LAYERS = r"(^|\.)encoder\."  # names of an encoder's layers, not of what in a decoder looks at it


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Another grid for the layers whose name matches the regular expression `match` (anywhere in the name).

    `bits`: their width, or 16 to leave them in floating point. `group_size`: their groups, `symmetric`: whether their grid has no
    zero points, or "same".
    """

    match: str
    bits: int
    group_size: int | None | Literal["same"] = "same"
    symmetric: bool | Literal["same"] = "same"

    def __post_init__(self) -> None:
        if self.bits not in (*BITS, 16):
            raise RecipeError(f"rule {self.match!r}: bits = {self.bits} is not supported; choose one of {(*BITS, 16)}")
        try:
            re.compile(self.match)
        except re.error as exc:
            raise RecipeError(f"rule {self.match!r} is not a regular expression: {exc}") from exc


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the codes, but for the model and the calibration data.

    `grid`: of the encoder's and decoder's linears. `head_bits`: of the output head (with the token embedding, where the
    two are one); None for those of the grid, 16 to leave it in floating point. `head_embedding_weight`: weight of the token look-up
    beside the head's own inputs, in units of the mean diagonal of their moments. `padding_weight`, `frame_subsampling`: how
    encoder positions count (see `calibrate.PositionWeights`). `rules`: exceptions, later ones win.
    """

    method: Method = field(default_factory=lambda: METHODS[DEFAULT_METHOD])
    grid: Grid = field(default_factory=Grid)
    head_bits: int | None = None
    head_embedding_weight: float = 0.01
    padding_weight: float = 0.0
    frame_subsampling: int = 3
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        if self.head_bits not in (None, *BITS, 16):
            raise RecipeError(f"head bits = {self.head_bits} is not supported; choose one of {(*BITS, 16)}")


def recipe_from(content: dict[str, Any]) -> Recipe:
    """A recipe as it stands in `sottovoce.json`. Raises `RecipeError` or `TypeError` for what is none."""
    parts = dict(content)
    return Recipe(
        method=Method(**parts.pop("method")),
        grid=Grid(**parts.pop("grid")),
        rules=tuple(Rule(**rule) for rule in parts.pop("rules")),
        **parts,
    )


def encoder_rule(target: str, bits: int) -> Rule:
    """Other `bits` for the encoder, on the grid that `target` is fastest with."""
    if bits == 8 and TARGETS[target].int8_rows:
        return Rule(match=ENCODER_LAYERS, bits=bits, group_size=None, symmetric=True)
    return Rule(match=ENCODER_LAYERS, bits=bits)
