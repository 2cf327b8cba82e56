"""NF4: 16 levels at quantiles of a normal distribution (QLoRA, arXiv 2305.14314; bitsandbytes), with a scale for each block."""

from dataclasses import dataclass
from typing import ClassVar

from sottovoce.core.level_book import Float16Scale
from sottovoce.errors import RecipeError

# bitsandbytes and onnxruntime (`blockwise_quant_block_bnb4.h`) have these digits.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCKS = (32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class NF4(Float16Scale):
    """16 levels, a float16 scale for each block."""

    name: ClassVar[str] = "nf4"

    group_size: int = 32  # columns that share a scale: 32, 64 or 128

    def __post_init__(self) -> None:
        if self.group_size not in BLOCKS:
            raise RecipeError(f"group size {self.group_size!r} is not supported by NF4; choose one of {BLOCKS}")

    @property
    def table(self) -> tuple[float, ...]:
        return LEVELS

    @property
    def block(self) -> int:
        return self.group_size

    @property
    def title(self) -> str:
        return f"NF4, groups of {self.group_size}"
