"""What a fit did, as a record: the schedule beside its baselines and the ideal."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sottovoce.fitting.baselines import OtherSchedule
from sottovoce.quantization.fit_record import Baseline, FitGoal, FitRecord, FittedUnit, LoopGuard, PassCount, WordIncrease
from sottovoce.quantization.schedule import PricedUnit, Schedule, ideal_bits


@dataclass(frozen=True, kw_only=True)
class MeasuredKL:
    """Nats per token on speech that no choice has seen: of the fit, of one format for all units, and the mean of random schedules (None:
    not measured)."""

    fit: float
    uniform: float
    random: float | None
    tokens: int


def fit_record(
    units: Sequence[PricedUnit],
    schedule: Schedule,
    *,
    goal: FitGoal,
    fixed_bytes: int,
    uniform: Schedule,
    uniform_title: str,
    random: Sequence[Schedule],
    others: Sequence[OtherSchedule],
    kl: MeasuredKL,
    passes: PassCount,
    rounds: int,
    swaps_tried: int,
    swaps_accepted: int,
    guard: LoopGuard,
    words: WordIncrease | None,
) -> FitRecord:
    """Join a schedule of `units`, the schedules it is compared with, and what was measured of them."""
    bits, ideal = ideal_bits(units, schedule.bytes)
    return FitRecord(
        goal=goal,
        bytes=fixed_bytes + schedule.bytes,
        fixed_bytes=fixed_bytes,
        predicted_kl=schedule.loss,
        measured_kl=kl.fit,
        ideal_kl=ideal,
        tokens=kl.tokens,
        rounds=rounds,
        uniform=Baseline(title=uniform_title, bytes=fixed_bytes + uniform.bytes, predicted_kl=uniform.loss, measured_kl=kl.uniform),
        random=Baseline(
            title="random schedules",
            bytes=fixed_bytes + float(np.mean([one.bytes for one in random])),
            predicted_kl=float(np.mean([one.loss for one in random])),
            measured_kl=kl.random,
            draws=len(random),
        ),
        units=tuple(
            FittedUnit(
                name=unit.unit.name,
                format=None if (chosen := unit.unit.menu[entry]) is None else chosen.title,
                bits_per_weight=8 * unit.unit.bytes[entry] / unit.unit.weights,
                bytes=unit.unit.bytes[entry],
                predicted_kl=unit.losses[entry],
                ideal_bits=float(ideal_bit),
            )
            for unit, entry, ideal_bit in zip(units, schedule.entries, bits, strict=True)
        ),
        passes=passes,
        swaps_tried=swaps_tried,
        swaps_accepted=swaps_accepted,
        guard=guard,
        words=words,
        others=tuple(
            Baseline(title=one.title, bytes=fixed_bytes + one.schedule.bytes, predicted_kl=one.schedule.loss, measured_kl=one.kl)
            for one in others
        ),
    )
