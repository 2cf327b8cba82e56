"""What to do with which layer: methods, grids, rules, and the plan they make for a model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sottovoce.core.grid import BITS, MOST_EXACT_BITS, Grid
from sottovoce.core.hessian import Order
from sottovoce.errors import RecipeError
from sottovoce.models.base import Layer, SpeechModel

Strength = float | Literal["diagnostic", "cross-fit"]
HELD_OUT: Literal["held-out"] = "held-out"
MOST_REFITS = 20
ENCODER_LAYERS = r"(^|\.)encoder\."  # names of an encoder's layers, not of what in a decoder looks at it
REFIT_BITS = 2  # on wider grids the codes lose next to nothing to their scales (docs/fade.md)


@dataclass(frozen=True, kw_only=True)
class Method:
    """How codes are found.

    `kind`: "rtn" rounds; "awq" scales channels, then rounds; "gptq" rounds column by column against the Hessian.
    The rest is for "gptq": `strength` of the correction for inherited error (0: plain GPTQ; a number: QEP; "diagnostic" or
    "cross-fit": FADE), `ridge` of the correction and `damping` of the Hessian (both in units of the mean diagonal, or
    "held-out": chosen per layer), `order` of the columns, `weigh_scales`: search each scale with errors weighted by the Hessian's
    diagonal (needs order "activation"), `refits`: how often scales are fitted again to the codes of 2-bit grids, which are rounded
    again in between, `absorb_bias`: put the mean output error into the bias, `correct_residual_mlp`: whether the second linear of
    feed-forward blocks is corrected too, `correct_stream`: whether layers that write into a residual stream correct for what it lacks.
    """

    kind: Literal["rtn", "awq", "gptq"]
    strength: Strength = 0.0
    ridge: float | Literal["held-out"] = 0.01
    damping: float | Literal["held-out"] = 0.01
    order: Order = "original"
    weigh_scales: bool = False
    refits: int = 0
    absorb_bias: bool = False
    correct_residual_mlp: bool = True
    correct_stream: bool = False

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
        if self.weigh_scales and self.order != "activation":
            raise RecipeError("weighted scales need order 'activation', whose scales are fixed beforehand")

    @property
    def streams(self) -> int:
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
    "qep": Method(kind="gptq", strength=0.5, correct_residual_mlp=False),
    "fade-diagnostic": Method(
        kind="gptq",
        strength="diagnostic",
        ridge=HELD_OUT,
        damping=HELD_OUT,
        order="activation",
        weigh_scales=True,
        refits=4,
        absorb_bias=True,
    ),
    "fade": Method(
        kind="gptq",
        strength="cross-fit",
        ridge=HELD_OUT,
        damping=HELD_OUT,
        order="activation",
        weigh_scales=True,
        refits=4,
        absorb_bias=True,
        correct_stream=True,
    ),
}
DEFAULT_METHOD = "fade"


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
    two are one); None for those of the grid, 16 to leave it in floating point. `head_identity`: weight of the token look-up
    beside the head's own inputs, in units of the mean diagonal of their moments. `padding_weight`, `frame_stride`: how
    encoder positions count (see `calibrate.PositionWeights`). `rules`: exceptions, later ones win.
    """

    method: Method = field(default_factory=lambda: METHODS[DEFAULT_METHOD])
    grid: Grid = field(default_factory=Grid)
    head_bits: int | None = None
    head_identity: float = 0.01
    padding_weight: float = 0.0
    frame_stride: int = 3
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


@dataclass(frozen=True)
class Target:
    """What a runtime's format can hold: whether its grid is symmetric by default, and what groups have to be multiples of.

    `one_width`: all layers must have the same bits, head included. `exact_minimum`: asymmetric groups need float16 minima. `int8_rows`:
    has a faster product for 8-bit layers that have one symmetric scale a row.
    """

    symmetric: bool
    multiple: int = 1
    exact_minimum: bool = False
    one_width: bool = False
    int8_rows: bool = False


TARGETS: dict[str, Target] = {
    "hf": Target(symmetric=False),
    "onnx": Target(symmetric=False, multiple=16, int8_rows=True),
    "gguf": Target(symmetric=True, multiple=32, exact_minimum=True),
    "ggml": Target(symmetric=True, multiple=32, exact_minimum=True, one_width=True),
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
    symmetric = (wanted.symmetric or (wanted.exact_minimum and bits > MOST_EXACT_BITS)) if symmetric is None else symmetric
    return Grid(
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        scale=scale,
        exact_minimum=wanted.exact_minimum,  # also for rules that make single layers asymmetric
    )


def encoder_rule(target: str, bits: int) -> Rule:
    """Other `bits` for the encoder, on the grid that `target` is fastest with."""
    if bits == 8 and TARGETS[target].int8_rows:
        return Rule(match=ENCODER_LAYERS, bits=bits, group_size=None, symmetric=True)
    return Rule(match=ENCODER_LAYERS, bits=bits)


@dataclass(frozen=True)
class Plan:
    """The layers to quantize with their grids, in the model's order, and the names of those left in floating point."""

    steps: tuple[tuple[Layer, Grid], ...]
    left: tuple[str, ...]

    def grid(self, name: str) -> Grid:
        """The grid of the layer `name`."""
        return next(grid for layer, grid in self.steps if layer.name == name)


def resolve(model: SpeechModel, recipe: Recipe) -> Plan:
    """Apply `recipe` to the layers of `model`. Layers for which its family has a floor keep that many bits, unless a rule names them.

    Raises `RecipeError` if a rule matches no layer, if groups do not divide a layer's rows (naming the groups that do), or
    if nothing is left to quantize.
    """
    layers = model.layers()
    if recipe.method.kind == "awq":
        model.awq_mappings()  # a family may not know them
    for rule in recipe.rules:
        if not any(re.search(rule.match, layer.name) for layer in layers):
            raise RecipeError(f"the rule {rule.match!r} matches no layer of {model.source}; layers look like {layers[0].name!r}")
    steps, left = [], []
    for layer in layers:
        grid = _grid_of(layer, recipe, model.floors)
        if grid is None:
            left.append(layer.name)
            continue
        in_features = model.module(layer.name).weight.shape[1]
        try:
            grid.columns_per_group(in_features)
        except RecipeError as exc:
            raise RecipeError(f"{layer.name}: {exc}") from exc
        steps.append((layer, grid))
    if not steps:
        raise RecipeError("the recipe leaves every layer in floating point; nothing to quantize")
    return Plan(tuple(steps), tuple(left))


def check_target(plan: Plan, model: SpeechModel, target: str) -> None:
    """Raises `RecipeError` with the reason if the format of `target` cannot hold what `plan` makes."""
    wanted = TARGETS[target]
    for layer, grid in plan.steps:
        size = grid.columns_per_group(model.module(layer.name).weight.shape[1])
        if size % wanted.multiple:
            raise RecipeError(f"{layer.name}: groups of {size} do not fit {target}, which wants multiples of {wanted.multiple}")
        if wanted.exact_minimum and not (grid.symmetric or grid.exact_minimum):
            raise RecipeError(f"{layer.name}: {target} has no asymmetric blocks of {grid.bits} bits; choose a symmetric grid")
    widths = sorted({grid.bits for _, grid in plan.steps} | ({16} if plan.left else set()))
    if wanted.one_width and len(widths) > 1:
        raise RecipeError(
            f"{target} holds one width for all layers, head included; the recipe asks for {' and '.join(map(str, widths))} bits"
        )


def _grid_of(layer: Layer, recipe: Recipe, floors: Mapping[str, int]) -> Grid | None:
    bits, group_size, symmetric = recipe.grid.bits, recipe.grid.group_size, recipe.grid.symmetric
    for match, least in floors.items():
        if re.search(match, layer.name):
            bits = max(bits, least)
    if layer.part == "head" and recipe.head_bits is not None:
        bits = recipe.head_bits
    for rule in recipe.rules:
        if re.search(rule.match, layer.name):
            bits = rule.bits
            group_size = group_size if rule.group_size == "same" else rule.group_size
            symmetric = symmetric if rule.symmetric == "same" else rule.symmetric
    if bits == 16:
        return None
    # Beside 4-bit blocks with a minimum, ggml's 8-bit blocks have none.
    symmetric = symmetric or (recipe.grid.exact_minimum and bits > MOST_EXACT_BITS)
    return replace(recipe.grid, bits=bits, group_size=group_size, symmetric=symmetric)


def method_named(name: str, **changes: Any) -> Method:
    """The method called `name` with some settings changed. Raises `RecipeError` for an unknown name."""
    if name not in METHODS:
        raise RecipeError(f"method {name!r} is not known; choose one of {', '.join(METHODS)}")
    return replace(METHODS[name], **changes)
