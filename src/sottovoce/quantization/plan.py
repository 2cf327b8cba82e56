"""The plan: which layer gets which number format. Made once, carried out, and stored with the result."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sottovoce.core.affine import Affine
from sottovoce.core.number_format import NumberFormat
from sottovoce.errors import RecipeError
from sottovoce.models.layers import Layer, Part
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.methods import AWQ
from sottovoce.quantization.recipe import FLOAT_BITS, Recipe, Rule
from sottovoce.quantization.target import Target


@dataclass(frozen=True, kw_only=True)
class PlannedLayer:
    """What happens to one layer."""

    name: str
    part: Part
    format: NumberFormat
    shape: tuple[int, int]  # [out, in]
    tie_group: str | None = None  # layers of one group are one to the runtime: they must have the same format
    rounds_activations: bool = False  # whether the target's kernels round the layer's inputs to 8 bits

    @property
    def weights(self) -> int:
        """How many weights it has."""
        return self.shape[0] * self.shape[1]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, parameters included."""
        return self.format.bits_per_weight(self.shape[1])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The layers to quantize, in the model's order, and the names of those left in floating point, for one target."""

    target: str
    layers: tuple[PlannedLayer, ...]
    ignored: tuple[str, ...] = ()

    @cached_property
    def _by_name(self) -> dict[str, PlannedLayer]:
        return {layer.name: layer for layer in self.layers}

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def format(self, name: str) -> NumberFormat:
        """Return the format of the layer `name`."""
        return self._by_name[name].format

    @property
    def formats(self) -> tuple[NumberFormat, ...]:
        """The formats that occur, in order of appearance."""
        return tuple(dict.fromkeys(layer.format for layer in self.layers))

    @property
    def main_format(self) -> NumberFormat:
        """The format of most weights."""
        weights = dict.fromkeys(self.formats, 0)
        for layer in self.layers:
            weights[layer.format] += layer.weights
        return max(weights, key=weights.__getitem__)

    @property
    def weights(self) -> int:
        """How many weights are quantized."""
        return sum(layer.weights for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per quantized weight, on average."""
        return sum(layer.weights * layer.bits_per_weight for layer in self.layers) / self.weights


def make_plan(model: SpeechModel, recipe: Recipe, target: Target) -> Plan:
    """Apply `recipe` to the layers of `model`. Layers for which their family has a minimum keep that many bits, unless a rule names them.

    Raises `RecipeError` if a rule covers no layer, if blocks do not divide a layer's rows (naming what does), if nothing is left to
    quantize, or if `target` cannot hold the result.
    """
    layers = model.layers()
    if isinstance(recipe.method, AWQ):
        model.awq_mappings()  # a family may not know them
    for rule in recipe.rules:
        if not any(rule.covers(layer) for layer in layers):
            raise RecipeError(f"the rule for {rule.title} covers no layer of {model.source}; layers look like {layers[0].name!r}")
    planned, ignored = [], []
    for layer in layers:
        number_format = _format_of(layer, recipe, target)
        if number_format is None:
            ignored.append(layer.name)
            continue
        out_features, in_features = model.module(layer.name).weight.shape
        planned.append(
            PlannedLayer(
                name=layer.name,
                part=layer.part,
                format=number_format,
                shape=(out_features, in_features),
                tie_group=tie_group(layer, model),
                rounds_activations=target.rounds_activations,
            )
        )
    if not planned:
        raise RecipeError("the recipe leaves every layer in floating point; nothing to quantize")
    plan = Plan(target=target.name, layers=tuple(planned), ignored=tuple(ignored))
    check_target(plan, target)
    return plan


def check_plan(plan: Plan, model: SpeechModel, target: Target) -> None:
    """Check that a given plan fits `model` and `target`. Raises `RecipeError`."""
    shapes = model.layer_shapes()
    named = [layer.name for layer in plan.layers] + list(plan.ignored)
    if odd := sorted(set(named) ^ set(shapes)):
        known = "does not have" if odd[0] in named else "has, and the plan does not name"
        raise RecipeError(f"the plan does not fit {model.source}: the model {known} the layer {odd[0]!r}")
    if len(set(named)) < len(named):
        raise RecipeError("the plan names a layer twice")
    for layer in plan.layers:
        if layer.shape != shapes[layer.name]:
            raise RecipeError(f"{layer.name}: the plan is for a layer of shape {layer.shape}; the model's is {shapes[layer.name]}")
    if plan.target != target.name:
        raise RecipeError(f"the plan is made for the target {plan.target}, and {target.name} was asked for; name its own target")
    check_target(plan, target)


def check_target(plan: Plan, target: Target) -> None:
    """Raise `RecipeError` with the reason if the file of `target` cannot hold what `plan` makes."""
    for layer in plan.layers:
        if (reason := target.misfit(layer.format, layer.part, layer.shape[1])) is not None:
            same = [(other.part, other.shape[1]) for other in plan.layers if other.format == layer.format]
            fitting = target.nearest_fitting(layer.format, same)
            raise RecipeError(f"{layer.name}: {reason}" + (f"; the nearest format that fits is {fitting}" if fitting else ""))
    odd_floats = bool(plan.ignored) and not target.beside_float
    if target.one_format and (len(plan.formats) > 1 or odd_floats):
        found = [number_format.title for number_format in plan.formats] + (["floating point"] if odd_floats else [])
        raise RecipeError(f"{target.name} holds one format for all layers, head included; the plan has {' and '.join(found)}")


def tie_group(layer: Layer, model: SpeechModel) -> str | None:
    """Return the name of the weight that `layer` shares with another module, under which it is stored; None: it shares none."""
    return model.embedding if layer.name == model.head and model.tied else None


def _format_of(layer: Layer, recipe: Recipe, target: Target) -> NumberFormat | None:
    """The layer's format, or None: it stays in floating point."""
    own = recipe.format
    if own.code_bits < layer.min_bits:
        own = own.with_bits(layer.min_bits) if isinstance(own, Affine) else target.format(bits=layer.min_bits)
    found: NumberFormat | None = own
    if layer.part == "head" and recipe.head_bits is not None:
        found = _affine_at(recipe, recipe.head_bits, {}, "head_bits")
    # Rules that say "same" take the groups of the rule before.
    changes = dict[str, Any]()
    for rule in recipe.rules:
        if not rule.covers(layer):
            continue
        if rule.format is not None:
            found, changes = rule.format, {}
            continue
        changes |= _changes(rule)
        found = _affine_at(recipe, int(rule.bits or 0), changes, f"the rule for {rule.title}")
    return found


def _changes(rule: Rule) -> dict[str, Any]:
    given = {"group_size": rule.group_size, "symmetric": rule.symmetric}
    return {name: value for name, value in given.items() if value != "same"}


def _affine_at(recipe: Recipe, bits: int, changes: dict[str, Any], where: str) -> NumberFormat | None:
    if bits == FLOAT_BITS:
        return None
    if not isinstance(recipe.format, Affine):
        raise RecipeError(f"{where} gives bits, and the recipe's format is {recipe.format.title!r}; give a format in its place")
    return recipe.format.with_bits(bits, **changes)
