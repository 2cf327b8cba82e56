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

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sottovoce.backends.backend import Backend
from sottovoce.checkpoint.resume import StoredRun
from sottovoce.errors import CalibrationError, RecipeError
from sottovoce.fitting.attempt import Attempt, Quantizer
from sottovoce.fitting.baselines import formats_of, measured_kl, other_schedules, random_entries
from sottovoce.fitting.loop_guard import new_loops, without_costliest
from sottovoce.fitting.measuring import Measuring
from sottovoce.fitting.outcome import MeasuredKL, fit_record
from sottovoce.fitting.problem import make_problem
from sottovoce.fitting.search import Found, Search
from sottovoce.fitting.speech import FitSpeech
from sottovoce.fitting.swaps import Swapped, try_swaps
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.fit_record import FitGoal, FitRecord, LoopGuard
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.schedule import Unit, schedule_of
from sottovoce.system.progress import Progress

GUARD_ROUNDS = 3  # quantizations on account of loops, at most


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """`swaps`: how many are tried at most. `guarded`: recordings that are decoded in search of loops; 0: none. `baselines`: also measure
    random schedules, one by hand, and one by plain sensitivities."""

    swaps: int = 20
    guarded: int = 50
    baselines: bool = False


@dataclass(frozen=True, eq=False)
class _Guarded:
    """What is left when loops were listened for. `swaps`: how many of them it has."""

    result: QuantizedModel
    entries: tuple[int, ...]
    swaps: int
    guard: LoopGuard


class Fit:
    """A fit in progress. Make one, then call `run`, once."""

    def __init__(
        self, model: SpeechModel, backend: Backend, goal: FitGoal, settings: FitSettings, *, home: SpeechModel | None = None
    ) -> None:
        """`home`: the model as it was loaded, if `model` computes elsewhere than on the CPU.

        Raises `RecipeError` with the smallest size if the goal's size is too small.
        """
        self.problem, self.settings = make_problem(model, backend, goal, home), settings

    @property
    def units(self) -> tuple[Unit, ...]:
        """What gets a format each."""
        return self.problem.units

    @property
    def fixed_bytes(self) -> int:
        """What no schedule changes in the size of the file."""
        return self.problem.fixed_bytes

    def run(self, quantizer: Quantizer, speech: FitSpeech, run: StoredRun, progress: Progress) -> tuple[QuantizedModel, FitRecord]:
        """Carry it out. Raises `CalibrationError` if a bound on the KL or on the word error rate cannot be kept."""
        problem, measuring = self.problem, Measuring(self.problem, quantizer, speech, run, progress)
        draws = random_entries(problem)
        others = formats_of(problem.units, draws) if self.settings.baselines else None
        base = measuring.quantize("base", problem.base, others, price=True)
        units = measuring.price(base, problem.base, base.errors, "base")
        found = Search(measuring, units, base.errors, swaps=self.settings.swaps).run()
        swapped = try_swaps(
            problem.model,
            found.attempt,
            found.units,
            found.schedule.entries,
            found.swaps,
            problem.room(found.schedule),
            speech.held_out["swaps"],
            measuring.passes,
            progress,
        )
        most = problem.goal.max_bytes
        if swapped.accepted and most is not None and problem.real_bytes(swapped.entries) > most:  # its tables grew
            before = measuring.quantize(found.stage, found.schedule.entries)  # the layers are those that the run has
            swapped = Swapped(before.result, found.schedule.entries, 0)
        guarded = self._guard(found, swapped, measuring)
        result = replace(guarded.result, plan=problem.plan(guarded.entries))
        return result, self._record(guarded, found, base, draws, measuring)

    def _guard(self, found: Found, swapped: Swapped, measuring: Measuring) -> _Guarded:
        """Listen for loops, and make the costliest unit of the encoder larger while there is one.

        Of what keeps the goal the fewest loops win, earlier first.
        """
        speech, progress = measuring.speech.guard, measuring.progress
        units, entries, raised = found.units, swapped.entries, list[str]()
        first = looped = fewest = new_loops(swapped.result.model, speech, progress)
        best = swapped.result, entries, swapped.accepted
        for round_number in range(1, GUARD_ROUNDS + 1):
            larger = without_costliest(units, entries) if looped else None
            if larger is None:
                break
            units = larger[0]
            try:
                entries = self.problem.solve(units, found.kl_bound).entries
            except (CalibrationError, RecipeError):  # no schedule with that unit keeps the goal
                break
            raised.append(larger[1])
            result = measuring.quantize(f"guard-{round_number}", entries).result
            looped = new_loops(result.model, speech, progress)
            if len(looped) < len(fewest) and self._keeps_goal(result.model, measuring):
                best, fewest = (result, entries, 0), looped
        guard = LoopGuard(recordings=len(speech.ids), looped=first, remaining=fewest, raised=tuple(raised))
        return _Guarded(*best, guard)

    def _keeps_goal(self, model: SpeechModel, measuring: Measuring) -> bool:
        """Whether a model that was made for another reason keeps the bound of the goal; a size is kept by every schedule that is solved."""
        words, bound = measuring.speech.words, self.problem.goal.max_kl
        if words is not None:
            return measuring.increase(model, words, words.choice).points <= words.points
        return bound is None or measuring.kl(model, "losses") <= bound

    def _record(
        self,
        guarded: _Guarded,
        found: Found,
        base: Attempt,
        draws: Sequence[Sequence[int]],
        measuring: Measuring,
    ) -> FitRecord:
        units, words, model, baselines = found.units, measuring.speech.words, guarded.result.model, self.settings.baselines
        fit, uniform = measuring.kl(model, "report"), measuring.kl(base.result.model, "report")
        increase = None if words is None else measuring.increase(model, words, words.report)
        passes = measuring.counted()  # what comes now is no part of a fit
        kl = MeasuredKL(
            fit=fit,
            uniform=uniform,
            random=measured_kl(measuring, base, draws, "report") if baselines else None,
            tokens=measuring.speech.held_out["report"].n_tokens,
        )
        schedule = schedule_of(units, guarded.entries)
        most = schedule.bytes if self.problem.most_bytes is None else self.problem.most_bytes
        others = other_schedules(measuring, base, units, most, "report") if baselines else []
        return fit_record(
            units,
            schedule,
            goal=self.problem.goal,
            fixed_bytes=self.problem.fixed_bytes,
            uniform=schedule_of(units, self.problem.base),
            uniform_title=base.result.plan.layers[0].format.title,
            random=[schedule_of(units, entries) for entries in draws],
            others=others,
            kl=kl,
            passes=passes,
            rounds=found.rounds,
            swaps_tried=len(found.swaps),
            swaps_accepted=guarded.swaps,
            guard=guarded.guard,
            words=increase,
        )
