"""A fit from beginning to end: price, measure, solve, quantize, measure again, swap, write.

1. Quantize with one format for all units, near the size: the operating point. On the way every layer's factor prices all formats.
2. Measure each unit's level there, on held-out speech.
3. Solve the knapsack, and quantize with that schedule in network order.
4. Compare predicted and measured KL. If they differ by more than a factor of 1.5, measure the levels again there and repeat 3 once.
5. Try swaps on another fold.
6. Decode long recordings. If one loops that does not with the original, the encoder unit that costs most has to become larger: repeat 3
   and quantize again, a few times at most.
7. Measure on a third fold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sottovoce.backends.backend import Backend
from sottovoce.backends.layer_bytes import layer_bytes
from sottovoce.checkpoint.resume import StoredRun
from sottovoce.core.number_format import NumberFormat
from sottovoce.errors import CalibrationError, RecipeError
from sottovoce.evaluation.held_out import HeldOutSpeech
from sottovoce.fitting.attempt import Attempt, Quantizer, entry_errors, install
from sottovoce.fitting.loop_guard import new_loops, without_costliest
from sottovoce.fitting.menu import menu_formats
from sottovoce.fitting.size import file_bytes
from sottovoce.fitting.speech import FitSpeech
from sottovoce.fitting.swaps import Swap, propose_swaps, try_swaps, wanted_formats
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.fit_record import Baseline, FitGoal, FitRecord, FittedUnit, LoopGuard, PassCount
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.schedule import (
    MEGABYTE,
    PricedUnit,
    Schedule,
    Unit,
    blocking_unit,
    cheapest_loss,
    fewest_bytes,
    ideal_bits,
    make_units,
    plan_of,
    random_schedule,
    schedule_of,
    uniform_entries,
)
from sottovoce.quantization.unit_levels import ChangeMeter, UnitLevel, measure_levels
from sottovoce.system.progress import Progress

TOLERANCE = 1.5  # factor between predicted and measured KL up to which levels are not measured again
ROUNDS = 2  # how often levels are measured at most
KL_ATTEMPTS = 4  # schedules tried until a bound on the KL holds
RANDOM_SCHEDULES = 20
GUARD_ROUNDS = 3  # quantizations on account of loops, at most
START_BITS = 4.75  # stored bits per weight of the operating point where no size is given
LEVELS = "levels"


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """`swaps`: how many are tried at most. `guarded`: recordings that are decoded in search of loops; 0: none. `baselines`: also measure
    random schedules."""

    swaps: int = 20
    guarded: int = 50
    baselines: bool = False


class Fit:
    """A fit in progress. Make one, then call `run`."""

    def __init__(
        self,
        model: SpeechModel,
        backend: Backend,
        goal: FitGoal,
        settings: FitSettings,
    ) -> None:
        """Raises `RecipeError` with the smallest size if the goal's size is too small."""
        self.model, self.backend, self.goal, self.settings = model, backend, goal, settings
        self.units = make_units(
            model, backend.target, menu_formats(backend.target), lambda f, layer, shape: layer_bytes(backend, f, layer.part, shape)
        )
        counts = sum(unit.weights for unit in self.units)
        start = goal.max_bytes if goal.max_bytes is not None else int(START_BITS / 8 * counts)
        self.base = uniform_entries(self.units, start)
        base_plan = plan_of(self.units, self.base, model, backend.target)
        base_bytes = sum(unit.bytes[entry] for unit, entry in zip(self.units, self.base, strict=True))
        self.fixed_bytes = file_bytes(model, base_plan, backend) - base_bytes
        if goal.max_bytes is not None:
            self._refuse_infeasible(goal.max_bytes)
            self.base = uniform_entries(self.units, goal.max_bytes - self.fixed_bytes)
        self.passes = [0.0, 0.0]

    def _refuse_infeasible(self, most: int) -> None:
        unit, least = blocking_unit(self.units)
        if self.fixed_bytes + least > most:
            share = min(unit.bytes) / MEGABYTE
            raise RecipeError(
                f"{most / MEGABYTE:.2f} MB is too small for {self.backend.name}: the smallest file takes "
                f"{(self.fixed_bytes + least) / MEGABYTE:.2f} MB, of which {unit.name} takes {share:.2f} MB at "
                f"{8 * min(unit.bytes) / unit.weights:.2f} bits per weight and {self.fixed_bytes / MEGABYTE:.2f} MB are not quantized; "
                "give a larger size"
            )

    def run(self, quantizer: Quantizer, speech: FitSpeech, run: StoredRun, progress: Progress) -> tuple[QuantizedModel, FitRecord]:
        """Carry it out. Raises `CalibrationError` if a bound on the KL cannot be kept."""
        target = self.backend.target
        draws = self._random_entries()
        base = quantizer.quantize(
            "base",
            plan_of(self.units, self.base, self.model, target),
            others=self._formats_of(draws) if self.settings.baselines else None,
            price=True,
        )
        units = self._levels(base, self.base, base.errors, speech, run, "base", progress)
        schedule = self._solve(units)
        attempt, rounds, swaps = base, 1, list[Swap]()
        for round_number in range(1, KL_ATTEMPTS + 1):
            proposed = propose_swaps(units, schedule.entries, self._room(schedule), self.settings.swaps)
            attempt = quantizer.quantize(
                f"round-{round_number}",
                plan_of(self.units, schedule.entries, self.model, target),
                others=wanted_formats(units, proposed),
            )
            kl = self._measure(attempt.result.model, speech.held_out["levels"])
            ratio = kl / schedule.loss if schedule.loss > 0 else 1.0
            if rounds < ROUNDS and abs(math.log(max(ratio, 1e-9))) > math.log(TOLERANCE):
                rounds += 1
                units = self._levels(attempt, schedule.entries, base.errors, speech, run, f"round-{round_number}", progress, units)
            elif self.goal.max_kl is not None and kl > self.goal.max_kl:
                units = [replace(unit, level=unit.level * 1.05 * ratio) for unit in units]
            else:
                swaps = proposed
                break
            again = self._solve(units)
            if again.entries == schedule.entries:
                schedule = again
                break
            schedule = again
        else:
            raise CalibrationError(f"a KL of {self.goal.max_kl} was not reached in {KL_ATTEMPTS} schedules; give a larger one")
        result, entries, accepted, meter = try_swaps(
            self.model, attempt, units, schedule.entries, swaps, speech.held_out["swaps"], progress
        )
        self._count(meter)
        result, entries, guard = self._guard(units, entries, result, quantizer, speech, progress)
        result = replace(result, plan=plan_of(self.units, entries, self.model, target))
        final = schedule_of(units, entries)
        record = self._record(units, final, result, base, draws, speech, quantizer)
        return result, replace(record, rounds=rounds, swaps_tried=len(swaps), swaps_accepted=accepted, guard=guard)

    def _guard(
        self,
        units: Sequence[PricedUnit],
        entries: tuple[int, ...],
        result: QuantizedModel,
        quantizer: Quantizer,
        speech: FitSpeech,
        progress: Progress,
    ) -> tuple[QuantizedModel, tuple[int, ...], LoopGuard]:
        """Listen for loops, and make the costliest unit of the encoder larger while there is one. The fewest loops win, earlier first."""
        looped = new_loops(result.model, speech.guard, progress)
        best, first, raised = (result, entries, looped), looped, list[str]()
        for round_number in range(1, GUARD_ROUNDS + 1):
            larger = without_costliest(units, entries) if looped else None
            if larger is None:
                break
            units = larger[0]
            schedule = self._find(units)
            if schedule is None:
                break
            raised.append(larger[1])
            entries = schedule.entries
            result = quantizer.quantize(f"guard-{round_number}", plan_of(self.units, entries, self.model, self.backend.target)).result
            looped = new_loops(result.model, speech.guard, progress)
            if len(looped) < len(best[2]):
                best = result, entries, looped
        guard = LoopGuard(recordings=len(speech.guard.ids), looped=first, remaining=best[2], raised=tuple(raised))
        return best[0], best[1], guard

    def _solve(self, units: Sequence[PricedUnit]) -> Schedule:
        found = self._find(units)
        if found is None:
            raise CalibrationError(f"no schedule keeps the KL within {self.goal.max_kl}; give a larger one")
        return found

    def _find(self, units: Sequence[PricedUnit]) -> Schedule | None:
        if self.goal.max_bytes is not None:
            found = cheapest_loss(units, self.goal.max_bytes - self.fixed_bytes)
        else:
            found = fewest_bytes(units, self.goal.max_kl or 0.0)
        return None if found is None else self._within_the_file(units, found)

    def _within_the_file(self, units: Sequence[PricedUnit], schedule: Schedule) -> Schedule:
        """The schedule, or a smaller one if its real file turns out larger than the sum of its parts."""
        if self.goal.max_bytes is None:
            return schedule
        most = self.goal.max_bytes - self.fixed_bytes
        for _ in range(3):
            real = file_bytes(self.model, plan_of(self.units, schedule.entries, self.model, self.backend.target), self.backend)
            if real <= self.goal.max_bytes:
                return schedule
            most -= real - self.goal.max_bytes
            smaller = cheapest_loss(units, most)
            if smaller is None:
                break
            schedule = smaller
        raise RecipeError(f"no file of {self.backend.name} within {self.goal.max_bytes / MEGABYTE:.2f} MB was found; give a larger size")

    def _room(self, schedule: Schedule) -> int:
        return self.goal.max_bytes - self.fixed_bytes if self.goal.max_bytes is not None else schedule.bytes

    def _levels(
        self,
        attempt: Attempt,
        entries: Sequence[int],
        errors: Mapping[tuple[str, NumberFormat], float],
        speech: FitSpeech,
        run: StoredRun,
        stage: str,
        progress: Progress,
        before: Sequence[PricedUnit] | None = None,
    ) -> list[PricedUnit]:
        meter = ChangeMeter(attempt.result.model, speech.held_out["levels"])
        key = f"{LEVELS}-{stage}"
        known = {value["unit"]: UnitLevel(own=value["own"], marginal=value["marginal"]) for value in run.values(key)}
        names = {unit.name: [layer.name for layer in unit.layers] for unit in self.units}
        levels = measure_levels(
            self.model,
            meter,
            names,
            known=known,
            on_level=lambda name, level: run.add_value(key, {"unit": name, "own": level.own, "marginal": level.marginal}),
            progress=progress,
        )
        self._count(meter)
        return priced_units(self.units, entries, errors, levels, meter.kl, before)

    def _measure(self, model: SpeechModel, speech: HeldOutSpeech) -> float:
        self.passes = [count + speech.n_utterances for count in self.passes]
        return speech.mean_divergence(model)

    def _count(self, meter: ChangeMeter) -> None:
        self.passes = [self.passes[0] + meter.encoder_passes, self.passes[1] + meter.decoder_passes]

    def _random_entries(self) -> list[tuple[int, ...]]:
        free = [PricedUnit(unit=unit, errors=(0.0,) * len(unit.bytes), base=0, level=0.0) for unit in self.units]
        most = sum(unit.bytes[entry] for unit, entry in zip(self.units, self.base, strict=True))
        if self.goal.max_bytes is not None:
            most = self.goal.max_bytes - self.fixed_bytes
        generator = np.random.default_rng(0)
        return [random_schedule(free, most, generator).entries for _ in range(RANDOM_SCHEDULES)]

    def _formats_of(self, schedules: Sequence[Sequence[int]]) -> dict[str, list[NumberFormat]]:
        wanted = dict[str, list[NumberFormat]]()
        for i, unit in enumerate(self.units):
            formats = dict.fromkeys(f for entries in schedules if (f := unit.menu[entries[i]]) is not None)
            for layer in unit.layers:
                wanted[layer.name] = list(formats)
        return wanted

    def _record(
        self,
        units: Sequence[PricedUnit],
        schedule: Schedule,
        result: QuantizedModel,
        base: Attempt,
        draws: Sequence[Sequence[int]],
        speech: FitSpeech,
        quantizer: Quantizer,
    ) -> FitRecord:
        report = speech.held_out["report"]
        measured = self._measure(result.model, report)
        bits, ideal = ideal_bits(units, schedule.bytes)
        uniform = schedule_of(units, self.base)
        random = [schedule_of(units, entries) for entries in draws]
        measured_random = None
        uniform_kl = self._measure(base.result.model, report)
        if self.settings.baselines:
            measured_random = float(np.mean([self._measured_random(base, entries, report) for entries in draws]))
        title = base.result.plan.layers[0].format.title
        return FitRecord(
            goal=self.goal,
            bytes=self.fixed_bytes + schedule.bytes,
            fixed_bytes=self.fixed_bytes,
            predicted_kl=schedule.loss,
            measured_kl=measured,
            ideal_kl=ideal,
            tokens=report.n_tokens,
            rounds=1,
            uniform=Baseline(title=title, bytes=self.fixed_bytes + uniform.bytes, predicted_kl=uniform.loss, measured_kl=uniform_kl),
            random=Baseline(
                title="random schedules",
                bytes=self.fixed_bytes + float(np.mean([one.bytes for one in random])),
                predicted_kl=float(np.mean([one.loss for one in random])),
                measured_kl=measured_random,
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
            passes=PassCount(
                calibration=quantizer.runs * quantizer.recipe.method.n_networks * len(speech.calibration.ids),
                encoder=round(self.passes[0], 1),
                decoder=round(self.passes[1], 1),
            ),
        )

    def _measured_random(self, base: Attempt, entries: Sequence[int], report: HeldOutSpeech) -> float:
        """A random schedule with the codes that the base model's statistics give."""
        for unit, entry in zip(self.units, entries, strict=True):
            number_format = unit.menu[entry]
            for layer in unit.layers:
                install(
                    self.model, base.result.model, layer.name, None if number_format is None else base.others[layer.name, number_format]
                )
        return self._measure(base.result.model, report)


def priced_units(
    units: Sequence[Unit],
    entries: Sequence[int],
    errors: Mapping[tuple[str, NumberFormat], float],
    levels: Mapping[str, UnitLevel],
    kl: float,
    before: Sequence[PricedUnit] | None = None,
) -> list[PricedUnit]:
    """Join prices and levels.

    Levels are the units' own half variances, scaled so that they add up to the KL of the operating point: cross terms are shared out in
    proportion. A unit that is in float16 at the operating point tells nothing; it keeps the price it had `before`.
    """
    whole = sum(level.own for level in levels.values())
    scale = kl / whole if whole > 0 else 1.0
    priced = []
    for i, (unit, entry) in enumerate(zip(units, entries, strict=True)):
        own = entry_errors(unit, errors)
        if unit.menu[entry] is None and before is not None:
            priced.append(before[i])
            continue
        priced.append(PricedUnit(unit=unit, errors=own, base=entry, level=scale * levels[unit.name].own))
    return priced
