"""Schedules that a fit is compared with: random ones of the same size, one by hand, and one by plain sensitivities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sottovoce.core.number_format import NumberFormat
from sottovoce.fitting.attempt import Attempt, install, layers_restored
from sottovoce.fitting.measuring import Measuring
from sottovoce.fitting.problem import Problem
from sottovoce.quantization.schedule import (
    PricedUnit,
    Schedule,
    Unit,
    bytes_of,
    cheapest_loss,
    random_schedule,
    schedule_of,
    uniform_entries,
)

RANDOM_SCHEDULES = 20
ENCODER_BITS = 8  # by hand: what people leave the encoder


@dataclass(frozen=True, kw_only=True)
class OtherSchedule:
    """A schedule made in another way, at the prices of the fit, and its measured KL in nats per token."""

    title: str
    schedule: Schedule
    kl: float


def random_entries(problem: Problem) -> list[tuple[int, ...]]:
    """Draw schedules that fill the size, or that of the operating point where none is given."""
    free = [PricedUnit(unit=unit, errors=(0.0,) * len(unit.bytes), base=0, base_loss=0.0) for unit in problem.units]
    most = bytes_of(problem.units, problem.base) if problem.most_bytes is None else problem.most_bytes
    generator = np.random.default_rng(0)
    return [random_schedule(free, most, generator).entries for _ in range(RANDOM_SCHEDULES)]


def formats_of(units: Sequence[Unit], schedules: Sequence[Sequence[int]]) -> dict[str, list[NumberFormat]]:
    """Return the formats, by layer, that occur in some schedules."""
    wanted = dict[str, list[NumberFormat]]()
    for i, unit in enumerate(units):
        formats = dict.fromkeys(f for entries in schedules if (f := unit.menu[entries[i]]) is not None)
        for layer in unit.layers:
            wanted[layer.name] = list(formats)
    return wanted


def measured_kl(measuring: Measuring, base: Attempt, schedules: Sequence[Sequence[int]], fold: str) -> float:
    """Return the mean KL of some schedules, with the codes that the statistics of `base` give. The model of `base` stays."""
    problem, model = measuring.problem, base.result.model
    found = list[float]()
    with layers_restored(model, [layer.name for unit in problem.units for layer in unit.layers]):
        for entries in schedules:
            for unit, entry in zip(problem.units, entries, strict=True):
                number_format = unit.menu[entry]
                for layer in unit.layers:
                    install(problem.model, model, layer.name, None if number_format is None else base.others[layer.name, number_format])
            found.append(measuring.kl(model, fold))
    return float(np.mean(found))


def other_schedules(measuring: Measuring, base: Attempt, units: Sequence[PricedUnit], most_bytes: int, fold: str) -> list[OtherSchedule]:
    """Make the schedules that people make without a fit, in at most `most_bytes` of all units, quantize by them and measure them on `fold`.

    By hand: 8 bits in the encoder, one format elsewhere; none if that is too large. By plain sensitivities: the same knapsack, with the
    loss of each unit measured alone, from full precision (HAWQ, ModelOpt's `kl_div` and others do so).
    """
    if len(units) == 1:
        return []
    made = {}
    if (by_hand := hand_entries([unit.unit for unit in units], most_bytes)) is not None:
        made["by-hand"] = f"{ENCODER_BITS} bits in the encoder, one format elsewhere", by_hand
    alone = measuring.sensitivities(base)
    priced = [
        replace(unit, base=entry, base_loss=alone[unit.unit.name], least_bytes=0)
        for unit, entry in zip(units, measuring.problem.base, strict=True)
    ]
    if (plain := cheapest_loss(priced, most_bytes)) is not None:
        made["by-sensitivities"] = "plain sensitivities", plain.entries
    return [
        OtherSchedule(
            title=title, schedule=schedule_of(units, entries), kl=measuring.kl(measuring.quantize(stage, entries).result.model, fold)
        )
        for stage, (title, entries) in made.items()
    ]


def hand_entries(units: Sequence[Unit], most_bytes: int) -> tuple[int, ...] | None:
    """Return 8 bits for the units of the encoder and the largest one format that fits for the others; None if nothing fits."""
    encoder = [unit for unit in units if all(layer.part == "encoder" for layer in unit.layers)]
    rest = [unit for unit in units if unit not in encoder]
    if not encoder or not rest:
        return None
    eight = [next((k for k, f in enumerate(unit.menu) if f is None or f.code_bits >= ENCODER_BITS), len(unit.menu) - 1) for unit in encoder]
    room = most_bytes - bytes_of(encoder, eight)
    others = uniform_entries(rest, room)
    if bytes_of(rest, others) > room:
        return None
    entries = {unit.name: entry for unit, entry in zip([*encoder, *rest], [*eight, *others], strict=True)}
    return tuple(entries[unit.name] for unit in units)
