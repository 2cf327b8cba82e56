"""What a fit chooses among, and the schedule that solves it for prices that are known."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sottovoce.backends.backend import Backend
from sottovoce.backends.layer_bytes import layer_bytes
from sottovoce.errors import CalibrationError, RecipeError
from sottovoce.fitting.menu import menu_formats
from sottovoce.fitting.size import file_bytes
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.fit_record import FitGoal
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.schedule import (
    MEGABYTE,
    PricedUnit,
    Schedule,
    Unit,
    blocking_unit,
    bytes_of,
    cheapest_loss,
    fewest_bytes,
    make_units,
    plan_of,
    uniform_entries,
)

START_BITS = 4.75  # stored bits per weight of the operating point where no size is given


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """`model`: where it computes; `home`: the same as it was loaded, of which files are written. `units`: with their menus. `base`: their
    entries at the operating point, one format near the size. `fixed_bytes`: of the file, what no schedule changes."""

    model: SpeechModel
    home: SpeechModel
    backend: Backend
    goal: FitGoal
    units: tuple[Unit, ...]
    base: tuple[int, ...]
    fixed_bytes: int
    _real: dict[tuple[int, ...], int] = field(default_factory=dict, init=False, repr=False)

    def plan(self, entries: Sequence[int]) -> Plan:
        """Return the plan of some entries. Raises `RecipeError` if it leaves everything in floating point."""
        return plan_of(self.units, entries, self.model, self.backend.target)

    @property
    def most_bytes(self) -> int | None:
        """What the units may take, or None: a loss is bounded, not the size."""
        return None if self.goal.max_bytes is None else self.goal.max_bytes - self.fixed_bytes

    def real_bytes(self, entries: Sequence[int]) -> int:
        """Return the bytes of the file that some entries give. It is written, without weights, to see."""
        key = tuple(entries)
        if key not in self._real:
            self._real[key] = file_bytes(self.home, self.plan(key), self.backend)
        return self._real[key]

    def room(self, schedule: Schedule) -> int:
        """Return the bytes that the units of a schedule that was solved may take after swaps: of its size, or what its file leaves free."""
        if self.goal.max_bytes is None:
            return schedule.bytes
        return schedule.bytes + max(0, self.goal.max_bytes - self.real_bytes(schedule.entries))

    def solve(self, units: Sequence[PricedUnit], kl_bound: float | None) -> Schedule:
        """Return the best schedule; `kl_bound`: the most it may lose, in nats, where no size is given.

        A bound that a fit by words chose and nothing keeps gives the schedule of least loss, whose words can be counted as well.
        Raises `CalibrationError` if there is none.
        """
        if self.most_bytes is not None:
            found = cheapest_loss(units, self.most_bytes)
        else:
            found = fewest_bytes(units, kl_bound or 0.0)
            if found is None and self.goal.max_wer_increase is not None:
                found = cheapest_loss(units, sum(max(unit.unit.bytes) for unit in units))
        if found is None:
            raise CalibrationError(f"no schedule keeps the KL within {self.goal.max_kl}; give a larger one")
        return self._within_the_file(units, found)

    def _within_the_file(self, units: Sequence[PricedUnit], schedule: Schedule) -> Schedule:
        """The schedule, or a smaller one if its real file turns out larger than the sum of its parts."""
        if self.goal.max_bytes is None or self.most_bytes is None:
            return schedule
        most = self.most_bytes
        for _ in range(3):
            real = self.real_bytes(schedule.entries)
            if real <= self.goal.max_bytes:
                return schedule
            most -= real - self.goal.max_bytes
            smaller = cheapest_loss(units, most)
            if smaller is None:
                break
            schedule = smaller
        raise RecipeError(f"no file of {self.backend.name} within {self.goal.max_bytes / MEGABYTE:.2f} MB was found; give a larger size")


def make_problem(model: SpeechModel, backend: Backend, goal: FitGoal, home: SpeechModel | None = None) -> Problem:
    """List the units of `model` for `backend`; `home`: the model as it was loaded, if `model` is elsewhere than on the CPU.

    Raises `RecipeError` with the smallest size if the goal's size is too small.
    """
    home = home or model
    units = make_units(
        model, backend.target, menu_formats(backend.target), lambda f, layer, shape: layer_bytes(backend, f, layer.part, shape)
    )
    start = goal.max_bytes if goal.max_bytes is not None else int(START_BITS / 8 * sum(unit.weights for unit in units))
    base = uniform_entries(units, start)
    fixed_bytes = file_bytes(home, plan_of(units, base, model, backend.target), backend) - bytes_of(units, base)
    if goal.max_bytes is not None:
        _refuse_infeasible(units, fixed_bytes, goal.max_bytes, backend.name)
        base = uniform_entries(units, goal.max_bytes - fixed_bytes)
    return Problem(model=model, home=home, backend=backend, goal=goal, units=units, base=base, fixed_bytes=fixed_bytes)


def _refuse_infeasible(units: Sequence[Unit], fixed_bytes: int, most: int, name: str) -> None:
    unit, least = blocking_unit(units)
    if fixed_bytes + least > most:
        share = min(unit.bytes) / MEGABYTE
        raise RecipeError(
            f"{most / MEGABYTE:.2f} MB is too small for {name}: the smallest file takes {(fixed_bytes + least) / MEGABYTE:.2f} MB, of "
            f"which {unit.name} takes {share:.2f} MB at {8 * min(unit.bytes) / unit.weights:.2f} bits per weight and "
            f"{fixed_bytes / MEGABYTE:.2f} MB are not quantized; give a larger size"
        )
