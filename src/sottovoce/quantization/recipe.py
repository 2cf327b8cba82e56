"""A recipe: the method and, by part and name, the number formats that a plan is made from."""

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from sottovoce.core.affine import BITS, Affine
from sottovoce.core.formats import NAMED  # with it, recipes and plans can be read from files
from sottovoce.core.number_format import NumberFormat
from sottovoce.errors import RecipeError
from sottovoce.models.layers import Layer, Part
from sottovoce.quantization.methods import DEFAULT_METHOD, METHODS, Method
from sottovoce.quantization.target import Target

FLOAT_BITS = 16  # the width that stands for: leave the layer in floating point
Same = Literal["same"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Another format for some layers: those of a `part`, those whose name matches `match`, or those for which both hold."""

    part: Part | None = None  # one of `sottovoce.models.layers.Part`
    match: str | None = None  # a regular expression, found anywhere in the layer's name
    format: NumberFormat | None = None  # any format (see `sottovoce.format_named`); or, in its place:
    bits: int | None = None  # the recipe's affine format at this width; 16 leaves the layers in floating point
    group_size: int | None | Same = "same"  # of that affine format
    symmetric: bool | Same = "same"  # of that affine format

    def __post_init__(self) -> None:
        if self.part is None and self.match is None:
            raise RecipeError("a rule names no layers; give it a part, a regular expression, or both")
        if self.part is not None and self.part not in get_args(Part):
            raise RecipeError(f"rule for part {self.part!r}: parts are {', '.join(get_args(Part))}")
        if (self.format is None) == (self.bits is None):
            raise RecipeError(f"rule for {self.title}: give either a format or bits")
        if self.bits is not None and self.bits not in (*BITS, FLOAT_BITS):
            raise RecipeError(f"rule for {self.title}: bits = {self.bits} is not supported; choose one of {(*BITS, FLOAT_BITS)}")
        try:
            re.compile(self.match or "")
        except re.error as exc:
            raise RecipeError(f"rule {self.match!r} is not a regular expression: {exc}") from exc

    @property
    def title(self) -> str:
        """The layers it is for, in words."""
        parts = ([f"the part {self.part!r}"] if self.part else []) + ([f"names with {self.match!r}"] if self.match is not None else [])
        return " and ".join(parts)

    def covers(self, layer: Layer) -> bool:
        """Return whether the rule is for `layer`."""
        return (self.part is None or layer.part == self.part) and (self.match is None or bool(re.search(self.match, layer.name)))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the codes, but for the model, the target and the calibration data."""

    method: Method = field(default_factory=lambda: METHODS[DEFAULT_METHOD])
    format: NumberFormat = field(default_factory=Affine)  # of the linears of encoder and decoder
    head_bits: int | None = None  # of the output head (with the token embedding, where the two are one); None: as `format`; 16: float
    # Weight of the token look-up beside the head's own inputs, in units of the mean diagonal of their Hessian.
    head_embedding_weight: float = 0.01
    padding_weight: float = 0.0  # of audio frames beyond the end of the recording, 0 to 1
    frame_subsampling: int = 3  # only every n-th audio frame counts
    # Share of the recordings that are joined to full windows, 0 to 1, where a model's windows have one length (see `quantization.windows`).
    joined: float = 0.5
    rules: tuple[Rule, ...] = ()  # exceptions; later ones win

    def __post_init__(self) -> None:
        if self.head_bits not in (None, *BITS, FLOAT_BITS):
            raise RecipeError(f"head bits = {self.head_bits} is not supported; choose one of {(*BITS, FLOAT_BITS)}")
        if not 0 <= self.joined <= 1:
            raise RecipeError(f"the share of joined recordings must be within 0 .. 1, got {self.joined}")
        if not 0 <= self.padding_weight <= 1:
            raise RecipeError(f"the weight of padding must be within 0 .. 1, got {self.padding_weight}")
        if self.frame_subsampling < 1:
            raise RecipeError(f"every n-th frame counts with n of at least 1, got {self.frame_subsampling}")


def rule_named(match: str, width: str) -> Rule:
    """Return a rule for the layers whose name matches: `width` is a number of bits, or the name of a format. Raises `RecipeError`."""
    if width.lower() in NAMED:
        return Rule(match=match, format=NAMED[width.lower()])
    if not width.isdecimal():
        raise RecipeError(f"rule {match!r}: {width!r} is neither a number of bits nor a format; formats are {', '.join(NAMED)}")
    return Rule(match=match, bits=int(width))


def encoder_rule(target: Target, bits: int) -> Rule:
    """Return a rule that gives the encoder other `bits`, in the format that `target` is fastest with."""
    if bits == 8 and target.int8_rows:
        return Rule(part="encoder", bits=bits, group_size=None, symmetric=True)
    return Rule(part="encoder", bits=bits)
