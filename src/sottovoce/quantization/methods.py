"""Methods by name and their settings."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from sottovoce.core.affine import Grid
from sottovoce.core.hessian import Order
from sottovoce.errors import RecipeError

Strength = float | Literal["diagnostic", "cross-fit"]


HELD_OUT: Literal["held-out"] = "held-out"


MOST_REFITS = 20


REFIT_BITS = 2  # on wider grids the codes lose next to nothing to their scales (docs/fade.md)


@dataclass(frozen=True, kw_only=True)
class Method:
    """How codes are found.

    `kind`: "rtn" rounds; "awq" scales channels, then rounds; "gptq" rounds column by column against the Hessian.
    The rest is for "gptq": `strength` of the correction for inherited error (0: plain GPTQ; a number: QEP; "diagnostic" or
    "cross-fit": FADE), `ridge` of the correction and `damping` of the Hessian (both in units of the mean diagonal, or
    "held-out": chosen per layer), `order` of the columns, `hessian_weighted_scales`: search each scale with errors weighted by the Hessian's
    diagonal (needs order "activation"), `refits`: how often scales are fitted again to the codes of 2-bit grids, which are rounded
    again in between, `absorb_bias`: put the mean output error into the bias, `correct_mlp_output`: whether the second linear of
    feed-forward blocks is corrected too, `compensate_residual`: whether layers that write into a residual stream correct for what it lacks.
    """

    kind: Literal["rtn", "awq", "gptq"]
    strength: Strength = 0.0
    ridge: float | Literal["held-out"] = 0.01
    damping: float | Literal["held-out"] = 0.01
    order: Order = "original"
    hessian_weighted_scales: bool = False
    refits: int = 0
    absorb_bias: bool = False
    correct_mlp_output: bool = True
    compensate_residual: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("rtn", "awq", "gptq"):
            raise RecipeError(f"method kind {self.kind!r} is not known; choose 'rtn', 'awq' or 'gptq'")
        if not isinstance(self.strength, str) and not 0 <= self.strength <= 2:
            raise RecipeError(f"strength {self.strength} is out of range; 0 to 2, 'diagnostic' or 'cross-fit'")
        for name in ("ridge", "damping"):
            value = getattr(self, name)
            if value != HELD_OUT and not (isinstance(value, int | float) and 0 < value <= 100):
                raise RecipeError(f"{name} {value!r} is out of range; above 0, at most 100, or '{HELD_OUT}'")
        if not 0 <= self.refits <= MOST_REFITS:
            raise RecipeError(f"refits {self.refits!r} is out of range; 0 to {MOST_REFITS}")
        if self.damping == HELD_OUT and self.order != "activation":
            raise RecipeError("held-out damping needs order 'activation', whose scales are fixed beforehand")
        if self.hessian_weighted_scales and self.order != "activation":
            raise RecipeError("weighted scales need order 'activation', whose scales are fixed beforehand")

    @property
    def n_networks(self) -> int:
        """Networks that calibration runs: 0 (no data needed), 1, or 2."""
        return {"rtn": 0, "awq": 1, "gptq": 1 if self.strength == 0 else 2}[self.kind]

    def refits_on(self, grid: Grid) -> int:
        """How often scales are fitted again on `grid`."""
        return self.refits if grid.bits <= REFIT_BITS else 0

    @property
    def title(self) -> str:
        """The method in words."""
        if self.kind != "gptq":
            return self.kind.upper()
        if isinstance(self.strength, str):
            return f"FADE, strength per layer by the rule {self.strength}"
        return "GPTQ" if self.strength == 0 else f"GPTQ with QEP, strength {self.strength:g}"


METHODS: dict[str, Method] = {
    "rtn": Method(kind="rtn"),
    "awq": Method(kind="awq"),
    "gptq": Method(kind="gptq"),
    "qep": Method(kind="gptq", strength=0.5, correct_mlp_output=False),
    "fade-diagnostic": Method(
        kind="gptq",
        strength="diagnostic",
        ridge=HELD_OUT,
        damping=HELD_OUT,
        order="activation",
        hessian_weighted_scales=True,
        refits=4,
        absorb_bias=True,
    ),
    "fade": Method(
        kind="gptq",
        strength="cross-fit",
        ridge=HELD_OUT,
        damping=HELD_OUT,
        order="activation",
        hessian_weighted_scales=True,
        refits=4,
        absorb_bias=True,
        compensate_residual=True,
    ),
}


DEFAULT_METHOD = "fade"


def method_named(name: str, **changes: Any) -> Method:
    """The method called `name` with some settings changed. Raises `RecipeError` for an unknown name."""
    if name not in METHODS:
        raise RecipeError(f"method {name!r} is not known; choose one of {', '.join(METHODS)}")
    return replace(METHODS[name], **changes)
