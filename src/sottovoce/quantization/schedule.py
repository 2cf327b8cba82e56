"""Which layer gets which number format, so that a file of a given size loses least: a maker of `Plan`.

Layers that the runtime ties are one unit. Every unit has a menu: the formats that the target holds, with the bytes they take in the real
file and the loss they are expected to cost. The loss of unit u in format f is modelled as

    K[u][f] = loss[u] * E[u][f] / E[u][base]

with `E` from GPTQ's own Cholesky factor (`core.pricing`) and `loss` from one measurement at the operating point: the model with all
units in one base format. The sum over the units is minimized exactly (`core.knapsack`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sottovoce.core.knapsack import least_cost
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.water_filling import reverse_water_filling
from sottovoce.errors import RecipeError
from sottovoce.models.layers import Layer
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.plan import Plan, PlannedLayer, check_target, tie_group
from sottovoce.quantization.recipe import FLOAT_BITS
from sottovoce.quantization.target import Target

SIZING = ("bits", "group_size", "float16_min")  # settings by which formats of one size are compared or which make no difference then
MEGABYTE = 1e6
LayerBytes = Callable[[NumberFormat, Layer, tuple[int, int]], int]
"""The bytes of a layer's weight in the target's file, by format, layer and shape `[out, in]`."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Layers that must have the same format. `menu`: what they can have, by bytes; None is float16."""

    name: str
    layers: tuple[PlannedLayer, ...]  # their format is of no account
    menu: tuple[NumberFormat | None, ...]
    bytes: tuple[int, ...]  # of each entry of the menu

    @property
    def weights(self) -> int:
        """How many weights it has."""
        return sum(layer.weights for layer in self.layers)


def make_units(model: SpeechModel, target: Target, formats: Sequence[NumberFormat], layer_bytes: LayerBytes) -> tuple[Unit, ...]:
    """Group the layers of `model` as the runtime ties them, each group with what `target` can hold of `formats`, and float16.

    Raises `RecipeError` for a unit that none of the formats fits and that cannot stay in float16.
    """
    groups = dict[str, list[Layer]]()
    for layer in model.layers():
        groups.setdefault(_group_of(layer, model, target), []).append(layer)
    units = []
    for name, layers in groups.items():
        planned = tuple(
            PlannedLayer(
                name=layer.name,
                part=layer.part,
                format=formats[0],
                shape=tuple(model.module(layer.name).weight.shape),
                tie_group=tie_group(layer, model),
                rounds_activations=target.rounds_activations,
            )
            for layer in layers
        )
        sizes = dict[NumberFormat | None, int]()
        for number_format in formats:
            if all(_holds(target, number_format, layer, each.shape) for layer, each in zip(layers, planned, strict=True)):
                sizes[number_format] = sum(
                    layer_bytes(number_format, layer, each.shape) for layer, each in zip(layers, planned, strict=True)
                )
        if not target.one_format:
            sizes[None] = sum(each.weights * FLOAT_BITS // 8 for each in planned)
        if not sizes:
            raise RecipeError(f"{target.name} holds {name} in none of the formats {', '.join(f.title for f in formats)}")
        menu = tuple(sorted(_finest(sizes, planned[0].shape[1]), key=lambda number_format: (sizes[number_format], *_rank(number_format))))
        units.append(Unit(name=name, layers=planned, menu=menu, bytes=tuple(sizes[number_format] for number_format in menu)))
    return tuple(units)


def _rank(number_format: NumberFormat | None) -> tuple[int, str]:
    """Order formats of one size: more floating-point parameters first (a real minimum before a whole zero point), then by title."""
    if number_format is None:
        return 0, "float16"
    return -len(number_format.factors) - len(number_format.offsets), number_format.title


def _finest(sizes: Mapping[NumberFormat | None, int], in_features: int) -> list[NumberFormat | None]:
    """Without formats that take no less than one of the same kind with more bits or smaller blocks (3 bits that are stored as 4)."""
    kept = list[NumberFormat | None]()
    order = {number_format: place for place, number_format in enumerate(sizes)}
    for number_format, size in sizes.items():
        others = [other for other, others_size in sizes.items() if others_size == size and other is not number_format]
        if number_format is None or not any(
            other is not None and _finer(other, number_format, in_features, first=order[other] < order[number_format]) for other in others
        ):
            kept.append(number_format)
    return kept


def _finer(other: NumberFormat, number_format: NumberFormat, in_features: int, *, first: bool) -> bool:
    """Whether `other` is as good in bits and blocks, and all else is equal; of equal ones the `first` is."""

    def rest(one: NumberFormat) -> dict[str, object]:
        return {name: value for name, value in one.settings.items() if name not in SIZING}

    if type(other) is not type(number_format) or rest(other) != rest(number_format):
        return False
    mine = (number_format.code_bits, -number_format.block_size(in_features))
    others = (other.code_bits, -other.block_size(in_features))
    return all(a >= b for a, b in zip(others, mine, strict=True)) and (others != mine or first)


def _group_of(layer: Layer, model: SpeechModel, target: Target) -> str:
    if target.one_format:
        return "all"
    tied = tie_group(layer, model)
    if tied is not None:
        return tied
    prefix, _, last = layer.name.rpartition(".")
    for fused in target.fused:
        # Queries of cross-attention read other inputs than its keys and values, so these are two products.
        members = tuple(name for name in fused if name != "q_proj") if layer.part == "decoder cross" else fused
        if last in members:
            return f"{prefix}.({'|'.join(members)})"
    return layer.name


def _holds(target: Target, number_format: NumberFormat, layer: Layer, shape: tuple[int, int]) -> bool:
    return number_format.code_bits >= layer.min_bits and target.misfit(number_format, layer.part, shape[1]) is None


@dataclass(frozen=True, kw_only=True)
class PricedUnit:
    """A unit with what it costs. `errors[k]`: `E` of entry k of its menu; `base_loss`: its loss at entry `base`, in nats. `least_bytes`: no
    smaller entry may be chosen."""

    unit: Unit
    errors: tuple[float, ...]
    base: int
    base_loss: float
    least_bytes: int = 0

    @property
    def losses(self) -> tuple[float, ...]:
        """The loss of each entry of the menu, in nats."""
        reference = self.errors[self.base]
        return tuple(self.base_loss * error / reference if reference > 0 else 0.0 for error in self.errors)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """An entry of the menu for every unit, with the bytes of all units and the predicted loss in nats."""

    entries: tuple[int, ...]
    bytes: int
    loss: float


def cheapest_loss(units: Sequence[PricedUnit], most_bytes: int) -> Schedule | None:
    """Return the schedule of the least loss within `most_bytes` (of the units alone), or None if there is none."""
    return _schedule(units, [unit.unit.bytes for unit in units], [unit.losses for unit in units], most_bytes)


def fewest_bytes(units: Sequence[PricedUnit], most_loss: float) -> Schedule | None:
    """Return the smallest schedule whose loss is at most `most_loss` nats, or None if there is none."""
    return _schedule(units, [unit.losses for unit in units], [unit.unit.bytes for unit in units], most_loss)


def _schedule(
    units: Sequence[PricedUnit], weights: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], capacity: float
) -> Schedule | None:
    """Solve the knapsack over the entries that are not too small."""
    allowed = [[k for k, size in enumerate(unit.unit.bytes) if size >= unit.least_bytes] for unit in units]
    tables = [[[table[k] for k in entries] for table, entries in zip(whole, allowed, strict=True)] for whole in (weights, costs)]
    choice = least_cost(tables[0], tables[1], capacity)
    if choice is None:
        return None
    return schedule_of(units, [entries[option] for entries, option in zip(allowed, choice.options, strict=True)])


def schedule_of(units: Sequence[PricedUnit], entries: Sequence[int]) -> Schedule:
    """Return the schedule of given entries."""
    return Schedule(
        entries=tuple(entries),
        bytes=bytes_of([unit.unit for unit in units], entries),
        loss=sum(unit.losses[entry] for unit, entry in zip(units, entries, strict=True)),
    )


def bytes_of(units: Sequence[Unit], entries: Sequence[int]) -> int:
    """Return what `units` take in the file in given entries of their menus."""
    return sum(unit.bytes[entry] for unit, entry in zip(units, entries, strict=True))


def plan_of(units: Sequence[Unit], entries: Sequence[int], model: SpeechModel, target: Target) -> Plan:
    """Return the plan of a schedule. Raises `RecipeError` if it leaves everything in floating point."""
    chosen = {layer.name: unit.menu[entry] for unit, entry in zip(units, entries, strict=True) for layer in unit.layers}
    planned = {layer.name: layer for unit in units for layer in unit.layers}
    layers = [
        replace(planned[layer.name], format=number_format) for layer in model.layers() if (number_format := chosen[layer.name]) is not None
    ]
    ignored = tuple(layer.name for layer in model.layers() if chosen[layer.name] is None)
    if not layers:
        raise RecipeError("everything fits in float16; nothing needs to be quantized")
    plan = Plan(target=target.name, layers=tuple(layers), ignored=ignored)
    check_target(plan, target)
    return plan


def uniform_entries(units: Sequence[Unit], most_bytes: int) -> tuple[int, ...]:
    """Return the entries of one format for all units: of those within `most_bytes` the largest, else the smallest there is.

    A unit that cannot have it takes the smallest larger entry. Of formats of one size the first in the menu wins.
    """
    found = dict[tuple[int, ...], int]()
    for number_format in dict.fromkeys(number_format for unit in units for number_format in unit.menu if number_format is not None):
        entries = tuple(_nearest_entry(unit, number_format) for unit in units)
        found[entries] = bytes_of(units, entries)
    fitting = {entries: size for entries, size in found.items() if size <= most_bytes}
    return max(fitting, key=fitting.__getitem__) if fitting else min(found, key=found.__getitem__)


def _nearest_entry(unit: Unit, number_format: NumberFormat) -> int:
    if number_format in unit.menu:
        return unit.menu.index(number_format)
    shape = unit.layers[0].shape
    try:
        wanted = number_format.bits_per_weight(shape[1]) / 8 * unit.weights
    except RecipeError:
        wanted = number_format.code_bits / 8 * unit.weights
    larger = [k for k, size in enumerate(unit.bytes) if size >= wanted]
    return larger[0] if larger else len(unit.menu) - 1


def random_schedule(units: Sequence[PricedUnit], most_bytes: int, generator: np.random.Generator) -> Schedule:
    """Return a random schedule that fills `most_bytes`: units in random order take a random larger entry as long as one fits."""
    entries = [0] * len(units)
    room = most_bytes - sum(unit.unit.bytes[0] for unit in units)
    while True:
        moves = [
            (i, k)
            for i, unit in enumerate(units)
            for k in range(entries[i] + 1, len(unit.unit.menu))
            if unit.unit.bytes[k] - unit.unit.bytes[entries[i]] <= room and unit.unit.bytes[k] > unit.unit.bytes[entries[i]]
        ]
        if not moves:
            return schedule_of(units, entries)
        i = int(generator.choice(sorted({i for i, _ in moves})))
        k = int(generator.choice([k for j, k in moves if j == i]))
        room -= units[i].unit.bytes[k] - units[i].unit.bytes[entries[i]]
        entries[i] = k


def ideal_bits(units: Sequence[PricedUnit], most_bytes: int) -> tuple[np.ndarray, float]:
    """Return the bits per weight of each unit by reverse water-filling within `most_bytes`, and the loss that these would cost.

    Bits are stored ones, scales included. A unit's loss falls by `4^-b` from its base entry; bits stay within its menu's.
    """
    counts = np.array([unit.unit.weights for unit in units], float)
    stored = [np.array(unit.unit.bytes, float) * 8 / unit.unit.weights for unit in units]
    base = np.array([bits[unit.base] for bits, unit in zip(stored, units, strict=True)])
    variances = np.array([unit.base_loss for unit in units]) / counts * 4.0**base
    bits = reverse_water_filling(
        counts.tolist(),
        variances.tolist(),
        8 * most_bytes / float(counts.sum()),
        min(float(b.min()) for b in stored),
        max(float(b.max()) for b in stored),
    )
    return bits, float((counts * variances * 4.0**-bits).sum())


def blocking_unit(units: Sequence[Unit]) -> tuple[Unit, int]:
    """Return the unit that takes most bytes when all are as small as they can be, and the bytes of all then."""
    return max(units, key=lambda unit: min(unit.bytes)), sum(min(unit.bytes) for unit in units)
