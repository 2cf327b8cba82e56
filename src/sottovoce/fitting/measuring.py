"""What a fit asks of the machine: quantize by a schedule, and measure what came of it."""

from collections.abc import Mapping, Sequence

from sottovoce.checkpoint.resume import StoredRun
from sottovoce.core.number_format import NumberFormat
from sottovoce.data.dataset import DataSet
from sottovoce.fitting.attempt import Attempt, Quantizer, entry_errors
from sottovoce.fitting.passes import Passes
from sottovoce.fitting.problem import Problem
from sottovoce.fitting.speech import FitSpeech
from sottovoce.fitting.unit_losses import ChangeMeter, UnitLoss, measure_unit_losses
from sottovoce.fitting.word_goal import WordGoal
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.fit_record import PassCount, WordIncrease
from sottovoce.quantization.schedule import PricedUnit, Unit
from sottovoce.system.progress import Progress

LOSSES, SENSITIVITIES = "losses", "sensitivities"


class Measuring:
    """Quantizes and measures for one problem, and counts the passes that it takes."""

    def __init__(self, problem: Problem, quantizer: Quantizer, speech: FitSpeech, run: StoredRun, progress: Progress) -> None:
        self.problem, self.quantizer, self.speech, self.run, self.progress = problem, quantizer, speech, run, progress
        self.passes = Passes()

    def quantize(
        self, stage: str, entries: Sequence[int], others: Mapping[str, Sequence[NumberFormat]] | None = None, *, price: bool = False
    ) -> Attempt:
        """Quantize by some entries (see `Quantizer.quantize`)."""
        return self.quantizer.quantize(stage, self.problem.plan(entries), others=others, price=price)

    def kl(self, model: SpeechModel, fold: str) -> float:
        """Return the mean KL on the held-out speech of `fold`, in nats."""
        speech = self.speech.held_out[fold]
        self.passes.add(speech.n_utterances, speech.n_utterances)
        return speech.mean_divergence(model)

    def increase(self, model: SpeechModel, words: WordGoal, data: DataSet) -> WordIncrease:
        """Count the words of `data`."""
        self.passes.add(len(data), len(data))
        return words.increase(model, data, self.progress)

    def price(
        self,
        attempt: Attempt,
        entries: Sequence[int],
        errors: Mapping[tuple[str, NumberFormat], float],
        stage: str,
        before: Sequence[PricedUnit] | None = None,
    ) -> list[PricedUnit]:
        """Measure the units' losses in `attempt`, which has these `entries`, and join them with the errors of all formats."""
        meter = ChangeMeter(attempt.result.model, self.speech.held_out["losses"], self.passes)
        losses = self._unit_losses(f"{LOSSES}-{stage}", self.problem.model, meter)
        return priced_units(self.problem.units, entries, errors, losses, meter.kl, before)

    def sensitivities(self, attempt: Attempt) -> dict[str, float]:
        """Return the KL of the original with one unit at a time as it is in `attempt`, in nats, by the unit's name.

        The plain way to find out what a unit costs: errors of other units, which it would meet and which would
        correct for it, are not there.
        """
        meter = ChangeMeter(self.problem.model, self.speech.held_out["losses"], self.passes)
        losses = self._unit_losses(SENSITIVITIES, attempt.result.model, meter)
        return {name: meter.kl - loss.marginal for name, loss in losses.items()}

    def _unit_losses(self, key: str, other: SpeechModel, meter: ChangeMeter) -> dict[str, UnitLoss]:
        """The losses of all units in the meter's model; the run keeps them under `key`."""
        return measure_unit_losses(
            other,
            meter,
            {unit.name: [layer.name for layer in unit.layers] for unit in self.problem.units},
            known={value["unit"]: UnitLoss(own=value["own"], marginal=value["marginal"]) for value in self.run.values(key)},
            on_loss=lambda name, loss: self.run.add_value(key, {"unit": name, "own": loss.own, "marginal": loss.marginal}),
            progress=self.progress,
        )

    def counted(self) -> PassCount:
        """Return the passes so far."""
        recipe, utterances = self.quantizer.recipe, len(self.speech.calibration.ids)
        return PassCount(
            calibration=self.quantizer.runs * recipe.method.n_networks * utterances,
            encoder=round(self.passes.encoder, 1),
            decoder=round(self.passes.decoder, 1),
        )


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
        if unit.menu[entry] is None and before is not None:
            priced.append(before[i])
            continue
        own = scale * losses[unit.name].own
        priced.append(PricedUnit(unit=unit, errors=entry_errors(unit, errors), base=entry, base_loss=own))
    return priced
