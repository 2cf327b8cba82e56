"""Which layer gets which number format."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sottovoce.core.affine import MAX_FLOAT16_MIN_BITS, Grid
from sottovoce.errors import RecipeError
from sottovoce.models.layers import Layer
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.target import TARGETS


@dataclass(frozen=True)
class Plan:
    """The layers to quantize with their grids, in the model's order, and the names of those left in floating point."""

    layers: tuple[tuple[Layer, Grid], ...]
    ignored: tuple[str, ...]

    def grid(self, name: str) -> Grid:
        """The grid of the layer `name`."""
        return next(grid for layer, grid in self.layers if layer.name == name)


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
        grid = _grid_of(layer, recipe, model.min_bits)
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
    for layer, grid in plan.layers:
        size = grid.columns_per_group(model.module(layer.name).weight.shape[1])
        if size % wanted.multiple:
            raise RecipeError(f"{layer.name}: groups of {size} do not fit {target}, which wants multiples of {wanted.multiple}")
        if wanted.float16_min and not (grid.symmetric or grid.float16_min):
            raise RecipeError(f"{layer.name}: {target} has no asymmetric blocks of {grid.bits} bits; choose a symmetric grid")
    widths = sorted({grid.bits for _, grid in plan.layers} | ({16} if plan.ignored else set()))
    if wanted.one_width and len(widths) > 1:
        raise RecipeError(
            f"{target} holds one width for all layers, head included; the recipe asks for {' and '.join(map(str, widths))} bits"
        )


def _grid_of(layer: Layer, recipe: Recipe, min_bits: Mapping[str, int]) -> Grid | None:
    bits, group_size, symmetric = recipe.grid.bits, recipe.grid.group_size, recipe.grid.symmetric
    for match, least in min_bits.items():
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
    symmetric = symmetric or (recipe.grid.float16_min and bits > MAX_FLOAT16_MIN_BITS)
    return replace(recipe.grid, bits=bits, group_size=group_size, symmetric=symmetric)
