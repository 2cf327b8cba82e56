"""Quantize by schedules until one keeps the goal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sottovoce.core.number_format import NumberFormat
from sottovoce.errors import CalibrationError
from sottovoce.fitting.attempt import Attempt
from sottovoce.fitting.measuring import Measuring
from sottovoce.fitting.swaps import Swap, propose_swaps, wanted_formats
from sottovoce.fitting.word_goal import START_KL, WordGoal
from sottovoce.quantization.schedule import PricedUnit, Schedule

TOLERANCE = 1.5  # factor between predicted and measured KL up to which losses are not measured again
ROUNDS = 2  # how often losses are measured at most
KL_ATTEMPTS = 4  # schedules tried until a bound on the KL holds
WORD_ATTEMPTS = 6  # schedules tried for a bound on the word error rate


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """A schedule with the prices it was solved for, and its model. `kl`: measured. `kl_bound`: of the solution (None: the size is bounded).
    `swaps`: to try. `rounds`: how often losses had been measured. `stage`: under which the run keeps its layers."""

    units: Sequence[PricedUnit]
    schedule: Schedule
    attempt: Attempt
    kl: float
    kl_bound: float | None
    swaps: Sequence[Swap]
    rounds: int
    stage: str

    @property
    def ratio(self) -> float:
        """Measured over predicted KL."""
        return self.kl / self.schedule.loss if self.schedule.loss > 0 else 1.0


class Search:
    """A search in progress. Make one, then call `run`, once."""

    def __init__(
        self,
        measuring: Measuring,
        units: Sequence[PricedUnit],
        errors: Mapping[tuple[str, NumberFormat], float],
        *,
        swaps: int,
    ) -> None:
        """`errors`: of each layer by format. `swaps`: how many are proposed at most."""
        self.measuring, self.problem, self.units, self.errors, self.swaps = measuring, measuring.problem, units, errors, swaps
        self.rounds, self.quantized = 1, 0

    def run(self) -> Found:
        """Return the schedule that keeps the goal. Raises `CalibrationError` if none was found."""
        words = self.measuring.speech.words
        return self._by_kl(self.problem.goal.max_kl) if words is None else self._by_words(words)

    def _by_kl(self, bound: float | None) -> Found:
        while True:
            found = self._quantized(self.problem.solve(self.units, bound), bound, KL_ATTEMPTS)
            if bound is None or found.kl <= bound:
                return found
            self.units = [replace(unit, base_loss=unit.base_loss * 1.05 * found.ratio) for unit in self.units]
            if self.quantized >= KL_ATTEMPTS:
                raise CalibrationError(f"a KL of {bound} was not reached in {self.quantized} schedules; give a larger one")

    def _by_words(self, words: WordGoal) -> Found:
        """Try bounds on the KL until a schedule comes that was counted; the smallest that keeps the increase is taken."""
        bound: float | None = START_KL
        kept, counted = None, dict[tuple[int, ...], float]()
        while bound is not None and self.quantized < WORD_ATTEMPTS:
            schedule = self.problem.solve(self.units, bound)
            if schedule.entries in counted:
                break
            found = self._quantized(schedule, bound, WORD_ATTEMPTS)
            entries = found.schedule.entries
            if entries not in counted:  # measured again, losses may lead back to one
                counted[entries] = self.measuring.increase(found.attempt.result.model, words, words.choice).points
            if counted[entries] <= words.points and (kept is None or found.schedule.bytes < kept.schedule.bytes):
                kept = found
            bound = words.next_bound(bound, found.schedule.loss, counted[entries])
        if kept is None:
            raise CalibrationError(
                f"an increase of at most {words.points:g} points was not reached in {len(counted)} schedules, the least was "
                f"{min(counted.values()):.2f}; give a larger one, or more held-out speech (--held-out)"
            )
        return kept

    def _quantized(self, schedule: Schedule, bound: float | None, most: int) -> Found:
        """Quantize by `schedule`; if the losses were wrong, by the one that is best when they are measured again, `most` in all."""
        self.quantized += 1
        stage = f"round-{self.quantized}"
        swaps = propose_swaps(self.units, schedule.entries, self.problem.room(schedule), self.swaps)
        attempt = self.measuring.quantize(stage, schedule.entries, wanted_formats(self.units, swaps))
        kl = self.measuring.kl(attempt.result.model, "losses")
        found = Found(
            units=self.units, schedule=schedule, attempt=attempt, kl=kl, kl_bound=bound, swaps=swaps, rounds=self.rounds, stage=stage,
        )  # fmt: skip
        if self.rounds >= ROUNDS or self.quantized >= most or abs(math.log(max(found.ratio, 1e-9))) <= math.log(TOLERANCE):
            return found
        self.rounds += 1
        self.units = self.measuring.price(attempt, schedule.entries, self.errors, stage, self.units)
        again = self.problem.solve(self.units, bound)
        if again.entries != schedule.entries:
            return self._quantized(again, bound, most)
        # The formats that swaps by the new losses would need were not made.
        return replace(found, units=self.units, schedule=again, swaps=(), rounds=self.rounds)
