"""A fit from beginning to end: price, measure, solve, quantize, measure again, swap, write.

1. Quantize with one format for all units, near the size: the operating point. On the way every layer's factor prices all formats.
2. Measure each unit's loss there, on held-out speech.
3. Solve the knapsack, and quantize with that schedule in network order.
4. Compare predicted and measured KL. If they differ by more than a factor of 1.5, measure the losses again there and repeat 3 once.
   With a bound on the word error rate: count the words, choose another bound on the KL, and repeat 3, a few times at most.
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
from sottovoce.data.dataset import DataSet
from sottovoce.errors import CalibrationError, RecipeError
from sottovoce.evaluation.held_out import HeldOutSpeech
from sottovoce.fitting.attempt import Attempt, Quantizer, entry_errors, install
from sottovoce.fitting.loop_guard import new_loops, without_costliest
from sottovoce.fitting.menu import menu_formats
from sottovoce.fitting.outcome import MeasuredKL, fit_record
from sottovoce.fitting.size import file_bytes
from sottovoce.fitting.speech import FitSpeech
from sottovoce.fitting.swaps import Swap, propose_swaps, try_swaps, wanted_formats
from sottovoce.fitting.unit_losses import ChangeMeter, UnitLoss, measure_unit_losses
from sottovoce.fitting.word_goal import START_KL, WordGoal
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.fit_record import FitGoal, FitRecord, LoopGuard, PassCount, WordIncrease
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.schedule import (
    MEGABYTE,
    PricedUnit,
    Schedule,
    Unit,
    blocking_unit,
    cheapest_loss,
    fewest_bytes,
    make_units,
    plan_of,
    random_schedule,
    schedule_of,
    uniform_entries,
)
from sottovoce.system.progress import Progress

TOLERANCE = 1.5  # factor between predicted and measured KL up to which losses are not measured again
ROUNDS = 2  # how often losses are measured at most
KL_ATTEMPTS = 4  # schedules tried until a bound on the KL holds
WORD_ATTEMPTS = 6  # schedules tried for a bound on the word error rate
RANDOM_SCHEDULES = 20
GUARD_ROUNDS = 3  # quantizations on account of loops, at most
START_BITS = 4.75  # stored bits per weight of the operating point where no size is given
LOSSES = "losses"


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """`swaps`: how many are tried at most. `guarded`: recordings that are decoded in search of loops; 0: none. `baselines`: also measure
    random schedules."""

    swaps: int = 20
    guarded: int = 50
    baselines: bool = False


class Fit:
    """A fit in progress. Make one, then call `run`, once."""

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
        self.kl_bound = START_KL if goal.max_wer_increase is not None else goal.max_kl  # of the next schedule; None: bytes bind
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
        """Carry it out. Raises `CalibrationError` if a bound on the KL or on the word error rate cannot be kept."""
        target = self.backend.target
        draws = self._random_entries()
        base = quantizer.quantize(
            "base",
            plan_of(self.units, self.base, self.model, target),
            others=self._formats_of(draws) if self.settings.baselines else None,
            price=True,
        )
        units: Sequence[PricedUnit] = self._losses(base, self.base, base.errors, speech, run, "base", progress)
        schedule = self._solve(units)
        units, schedule, attempt, swaps, rounds = self._search(units, schedule, base, quantizer, speech, run, progress)
        result, entries, accepted, meter = try_swaps(
            self.model, attempt, units, schedule.entries, swaps, speech.held_out["swaps"], progress
        )
        self._count(meter)
        result, entries, guard = self._guard(units, entries, result, quantizer, speech, progress)
        result = replace(result, plan=plan_of(self.units, entries, self.model, target))
        final = schedule_of(units, entries)
        record = self._record(units, final, result, base, draws, speech, quantizer)
        words = None if speech.words is None else self._increase(result.model, speech.words, speech.words.report, progress)
        return result, replace(record, rounds=rounds, swaps_tried=len(swaps), swaps_accepted=accepted, guard=guard, words=words)

    def _search(
        self,
        units: Sequence[PricedUnit],
        schedule: Schedule,
        base: Attempt,
        quantizer: Quantizer,
        speech: FitSpeech,
        run: StoredRun,
        progress: Progress,
    ) -> tuple[Sequence[PricedUnit], Schedule, Attempt, list[Swap], int]:
        """Quantize by schedules until one keeps the goal. Returns prices, schedule, its model, swaps to try, and rounds of measuring."""
        rounds, kept, least = 1, None, math.inf
        for round_number in range(1, (KL_ATTEMPTS if speech.words is None else WORD_ATTEMPTS) + 1):
            swaps = propose_swaps(units, schedule.entries, self._room(schedule), self.settings.swaps)
            attempt = quantizer.quantize(
                f"round-{round_number}",
                plan_of(self.units, schedule.entries, self.model, self.backend.target),
                others=wanted_formats(units, swaps),
            )
            kl = self._measure(attempt.result.model, speech.held_out["losses"])
            ratio = kl / schedule.loss if schedule.loss > 0 else 1.0
            if rounds < ROUNDS and abs(math.log(max(ratio, 1e-9))) > math.log(TOLERANCE):
                rounds += 1
                units = self._losses(attempt, schedule.entries, base.errors, speech, run, f"round-{round_number}", progress, units)
            elif speech.words is not None and self.kl_bound is not None:
                words = speech.words
                increase = self._increase(attempt.result.model, words, words.choice, progress).points
                least = min(least, increase)
                if increase <= words.points and (kept is None or schedule.bytes < kept[1].bytes):
                    kept = units, schedule, attempt, swaps, rounds
                bound = words.next_bound(self.kl_bound, increase)
                if bound is None:
                    break
                self.kl_bound = bound
            elif self.kl_bound is not None and kl > self.kl_bound:
                units = [replace(unit, base_loss=unit.base_loss * 1.05 * ratio) for unit in units]
            else:
                return units, schedule, attempt, swaps, rounds
            again = self._find(units)
            if again is None and kept is None:
                raise CalibrationError(self._unreachable())
            if again is None or (again.entries == schedule.entries and speech.words is not None):
                break
            if again.entries == schedule.entries:
                return units, again, attempt, [], rounds
            schedule = again
        if kept is not None:
            return kept
        if speech.words is not None:
            raise CalibrationError(
                f"an increase of at most {speech.words.points:g} points was not reached in {round_number} schedules, the least was "
                f"{least:.2f}; give a larger one, or more held-out speech (--held-out)"
            )
        raise CalibrationError(f"a KL of {self.goal.max_kl} was not reached in {KL_ATTEMPTS} schedules; give a larger one")

    def _increase(self, model: SpeechModel, words: WordGoal, data: DataSet, progress: Progress) -> WordIncrease:
        self.passes = [count + len(data) for count in self.passes]
        return words.increase(model, data, progress)

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
            raise CalibrationError(self._unreachable())
        return found

    def _unreachable(self) -> str:
        if self.goal.max_wer_increase is not None:
            return f"no schedule keeps the word error rate within {self.goal.max_wer_increase:g} points; give a larger increase"
        return f"no schedule keeps the KL within {self.goal.max_kl}; give a larger one"

    def _find(self, units: Sequence[PricedUnit]) -> Schedule | None:
        if self.goal.max_bytes is not None:
            found = cheapest_loss(units, self.goal.max_bytes - self.fixed_bytes)
        else:
            found = fewest_bytes(units, self.kl_bound or 0.0)
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

    def _losses(
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
        meter = ChangeMeter(attempt.result.model, speech.held_out["losses"])
        key = f"{LOSSES}-{stage}"
        known = {value["unit"]: UnitLoss(own=value["own"], marginal=value["marginal"]) for value in run.values(key)}
        names = {unit.name: [layer.name for layer in unit.layers] for unit in self.units}
        losses = measure_unit_losses(
            self.model,
            meter,
            names,
            known=known,
            on_loss=lambda name, loss: run.add_value(key, {"unit": name, "own": loss.own, "marginal": loss.marginal}),
            progress=progress,
        )
        self._count(meter)
        return priced_units(self.units, entries, errors, losses, meter.kl, before)

    def _measure(self, model: SpeechModel, speech: HeldOutSpeech) -> float:
        self.passes = [count + speech.n_utterances for count in self.passes]
        return speech.mean_divergence(model)

    def _count(self, meter: ChangeMeter) -> None:
        self.passes = [self.passes[0] + meter.encoder_passes, self.passes[1] + meter.decoder_passes]

    def _random_entries(self) -> list[tuple[int, ...]]:
        free = [PricedUnit(unit=unit, errors=(0.0,) * len(unit.bytes), base=0, base_loss=0.0) for unit in self.units]
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
        kl = MeasuredKL(
            fit=self._measure(result.model, report),
            uniform=self._measure(base.result.model, report),
            random=float(np.mean([self._measured_random(base, entries, report) for entries in draws])) if self.settings.baselines else None,
            tokens=report.n_tokens,
        )
        return fit_record(
            units,
            schedule,
            goal=self.goal,
            fixed_bytes=self.fixed_bytes,
            uniform=schedule_of(units, self.base),
            uniform_title=base.result.plan.layers[0].format.title,
            random=[schedule_of(units, entries) for entries in draws],
            kl=kl,
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
    losses: Mapping[str, UnitLoss],
    kl: float,
    before: Sequence[PricedUnit] | None = None,
) -> list[PricedUnit]:
    """Join prices and losses.

    Losses are the units' own half variances, scaled so that they add up to the KL of the operating point: cross terms are shared out in
    proportion. A unit that is in float16 at the operating point tells nothing; it keeps the price it had `before`.
    """
    whole = sum(loss.own for loss in losses.values())
    scale = kl / whole if whole > 0 else 1.0
    priced = []
    for i, (unit, entry) in enumerate(zip(units, entries, strict=True)):
        own = entry_errors(unit, errors)
        if unit.menu[entry] is None and before is not None:
            priced.append(before[i])
            continue
        priced.append(PricedUnit(unit=unit, errors=own, base=entry, base_loss=scale * losses[unit.name].own))
    return priced
