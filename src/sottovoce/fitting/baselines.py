"""Schedules that a fit is compared with: random ones of the same size."""

from collections.abc import Sequence

import numpy as np

from sottovoce.core.number_format import NumberFormat
from sottovoce.fitting.attempt import Attempt, install
from sottovoce.fitting.measuring import Measuring
from sottovoce.fitting.problem import Problem
from sottovoce.quantization.schedule import PricedUnit, Unit, bytes_of, random_schedule

RANDOM_SCHEDULES = 20


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
    """Return the mean KL of some schedules, with the codes that the statistics of `base` give. The model of `base` is changed."""
    problem, model = measuring.problem, base.result.model
    found = list[float]()
    for entries in schedules:
        for unit, entry in zip(problem.units, entries, strict=True):
            number_format = unit.menu[entry]
            for layer in unit.layers:
                install(problem.model, model, layer.name, None if number_format is None else base.others[layer.name, number_format])
        found.append(measuring.kl(model, fold))
    return float(np.mean(found))
