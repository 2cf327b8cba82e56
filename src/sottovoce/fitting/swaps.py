"""Local search after the exact solution: one unit up, one down, in no more bytes, kept if held-out speech says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sottovoce.core.number_format import NumberFormat
from sottovoce.evaluation.held_out import HeldOutSpeech
from sottovoce.fitting.attempt import Attempt, install, layers_restored
from sottovoce.fitting.passes import Passes
from sottovoce.fitting.unit_losses import ChangeMeter
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.layer import LayerResult
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.schedule import PricedUnit, schedule_of
from sottovoce.system.devices import in_float64
from sottovoce.system.progress import Progress


@dataclass(frozen=True)
class Swap:
    """New entries of two units, by their numbers, and the loss in nats that the table predicts for the change (not negative)."""

    entries: Mapping[int, int]
    predicted: float


@dataclass(frozen=True, eq=False)
class Swapped:
    """The model after the swaps, its entries, and how many swaps were accepted. The plan of `result` is that from before."""

    result: QuantizedModel
    entries: tuple[int, ...]
    accepted: int


def propose_swaps(units: Sequence[PricedUnit], entries: Sequence[int], most_bytes: int, count: int) -> list[Swap]:
    """List the `count` swaps within `most_bytes` that the table finds least bad; each unit takes part in one at most.

    A unit in float16 stays there: it was not quantized, so no codes of a smaller format can be made of it.
    """
    size = schedule_of(units, entries).bytes
    found = []
    for up, down in ((i, j) for i in range(len(units)) for j in range(len(units)) if i != j):
        higher, lower = _neighbor(units[up], entries[up], 1), _neighbor(units[down], entries[down], -1)
        if higher is None or lower is None or units[down].unit.menu[entries[down]] is None:
            continue
        changes = {up: higher, down: lower}
        if size + sum(units[i].unit.bytes[k] - units[i].unit.bytes[entries[i]] for i, k in changes.items()) <= most_bytes:
            found.append(Swap(changes, sum(units[i].losses[k] - units[i].losses[entries[i]] for i, k in changes.items())))
    chosen, used = list[Swap](), set[int]()
    for swap in sorted(found, key=lambda swap: (swap.predicted, sorted(swap.entries.items()))):
        if len(chosen) < count and not used & swap.entries.keys():
            chosen.append(swap)
            used |= swap.entries.keys()
    return chosen


def _neighbor(unit: PricedUnit, entry: int, step: int) -> int | None:
    """The next entry that is larger and better, or smaller, than all in between; None if there is none."""
    losses, sizes = unit.losses, unit.unit.bytes
    front = [k for k in range(len(sizes)) if all(losses[j] > losses[k] for j in range(k)) or k == 0]
    beyond = [k for k in front if (k > entry and losses[k] < losses[entry] if step > 0 else k < entry and sizes[k] < sizes[entry])]
    return None if not beyond else beyond[0] if step > 0 else beyond[-1]


def wanted_formats(units: Sequence[PricedUnit], swaps: Sequence[Swap]) -> dict[str, list[NumberFormat]]:
    """Return the formats, by layer, that the swaps need and the schedule does not make."""
    wanted = dict[str, list[NumberFormat]]()
    for swap in swaps:
        for i, k in swap.entries.items():
            if (number_format := units[i].unit.menu[k]) is not None:
                for layer in units[i].unit.layers:
                    wanted.setdefault(layer.name, []).append(number_format)
    return wanted


def try_swaps(
    model: SpeechModel,
    attempt: Attempt,
    units: Sequence[PricedUnit],
    entries: Sequence[int],
    swaps: Sequence[Swap],
    room: int,
    speech: HeldOutSpeech,
    passes: Passes,
    progress: Progress,
) -> Swapped:
    """Carry out the swaps that lower the KL on `speech`, one after the other, while the units take at most `room` bytes.

    `passes`: to which those that it takes are added.
    """
    result, now, accepted = attempt.result, list(entries), 0
    meter = ChangeMeter(result.model, speech, passes)
    for n, swap in enumerate(swaps):
        progress("trying swaps", n, len(swaps))
        after = [swap.entries.get(i, k) for i, k in enumerate(now)]
        if schedule_of(units, after).bytes > room:  # each fits alone, not all together
            continue
        made = {
            layer.name: None if number_format is None else attempt.others[layer.name, number_format]
            for i, k in swap.entries.items()
            for number_format in (units[i].unit.menu[k],)
            for layer in units[i].unit.layers
        }
        with layers_restored(result.model, list(made)):
            _install_all(model, result.model, made)
            kl = float(in_float64(speech.divergence(meter.changed(list(made)))).mean())
        if kl < meter.kl:
            _install_all(model, result.model, made)
            accepted += 1
            now = after
            result = _with_layers(result, made)
            meter = ChangeMeter(result.model, speech, passes)
    progress("trying swaps", len(swaps), len(swaps))
    return Swapped(result, tuple(now), accepted)


def _install_all(model: SpeechModel, quantized: SpeechModel, made: Mapping[str, LayerResult | None]) -> None:
    for name, other in made.items():
        install(model, quantized, name, other)


def _with_layers(result: QuantizedModel, made: Mapping[str, LayerResult | None]) -> QuantizedModel:
    """The result with other codes and reports; its plan is replaced by the caller."""
    weights = {name: weight for name, weight in result.weights.items() if name not in made}
    reports = [made[report.name].report if made.get(report.name) else report for report in result.reports]  # type: ignore[union-attr]
    known = {report.name for report in reports}
    reports += [other.report for name, other in made.items() if other is not None and name not in known]
    gone = {name for name, other in made.items() if other is None}
    weights |= {name: other.weight for name, other in made.items() if other is not None}
    return replace(result, weights=weights, reports=tuple(report for report in reports if report.name not in gone))
