"""A logarithmic number system: 0 and powers of two, or of the square root of two, with a scale for each block.

A product with such a level is a shift of an exponent. Levels halve from the largest on (or shrink by the square root of two), so small
weights are represented as exactly as large ones, in relative terms. Half of the codes are negative, one of them is 0, and the rest are
positive: the side with one level more faces the larger weights, by the sign of the scale (asymmetric counts as in LogART).
"""

from dataclasses import dataclass
from typing import ClassVar

from sottovoce.core.level_book import Float16Scale
from sottovoce.errors import RecipeError

BITS = (2, 3, 4)
BLOCKS = (32, 64, 128)
STEPS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Logarithmic(Float16Scale):
    """Levels `2^(-k / steps_per_octave)`, a float16 scale for each block."""

    name: ClassVar[str] = "logarithmic"

    bits: int = 4  # 2, 3 or 4
    steps_per_octave: int = 1  # 1: powers of two; 2: also those of the square root of two
    group_size: int = 32  # columns that share a scale: 32, 64 or 128

    def __post_init__(self) -> None:
        for what, value, known in (
            ("bits", self.bits, BITS),
            ("steps_per_octave", self.steps_per_octave, STEPS),
            ("group size", self.group_size, BLOCKS),
        ):
            if value not in known:
                raise RecipeError(f"{what} {value!r} is not supported by a logarithmic format; choose one of {known}")

    @property
    def table(self) -> tuple[float, ...]:
        count = 1 << (self.bits - 1)
        positive = tuple(2.0 ** (-k / self.steps_per_octave) for k in range(count))
        return (0.0, *positive, *(-level for level in positive[: count - 1]))

    @property
    def block(self) -> int:
        return self.group_size

    @property
    def title(self) -> str:
        powers = "powers of two" if self.steps_per_octave == 1 else "half powers of two"
        return f"{powers}, {self.bits} bits, groups of {self.group_size}"
