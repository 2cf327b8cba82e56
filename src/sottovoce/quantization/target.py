"""What a runtime's file can hold."""

from dataclasses import dataclass
from typing import Literal

from sottovoce.core.affine import MAX_FLOAT16_MIN_BITS, Grid
from sottovoce.errors import RecipeError


@dataclass(frozen=True)
class Target:
    """What a runtime's format can hold: whether its grid is symmetric by default, and what groups have to be multiples of.

    `one_width`: all layers must have the same bits, head included. `float16_min`: asymmetric groups need float16 minima. `int8_rows`:
    has a faster product for 8-bit layers that have one symmetric scale a row.
    """

    symmetric: bool
    multiple: int = 1
    float16_min: bool = False
    one_width: bool = False
    int8_rows: bool = False


TARGETS: dict[str, Target] = {
    "hf": Target(symmetric=False),
    "onnx": Target(symmetric=False, multiple=16, int8_rows=True),
    "gguf": Target(symmetric=True, multiple=32, float16_min=True),
    "ggml": Target(symmetric=True, multiple=32, float16_min=True, one_width=True),
}


def target_grid(
    target: str,
    *,
    bits: int = 4,
    group_size: int | None = 32,
    symmetric: bool | None = None,
    scale: Literal["minmax", "search"] = "search",
) -> Grid:
    """The grid of `target` with what is given in place of its defaults. Raises `RecipeError` for an unknown target."""
    if target not in TARGETS:
        raise RecipeError(f"target {target!r} is not known; choose one of {', '.join(TARGETS)}")
    wanted = TARGETS[target]
    # ggml's 8-bit blocks have no minimum.
    symmetric = (wanted.symmetric or (wanted.float16_min and bits > MAX_FLOAT16_MIN_BITS)) if symmetric is None else symmetric
    return Grid(
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        scale=scale,
        float16_min=wanted.float16_min,  # also for rules that make single layers asymmetric
    )
