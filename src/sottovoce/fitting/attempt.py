"""One pass of a fit: quantize by a schedule, and keep what other entries of some units would have become."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sottovoce.checkpoint.resume import StoredRun
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.pricing import column_weights, expected_error
from sottovoce.models.parameters import copy_layer
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import CalibrationSpeech
from sottovoce.quantization.install import install_layer
from sottovoce.quantization.layer import LayerResult
from sottovoce.quantization.methods import GPTQ
from sottovoce.quantization.pipeline import QuantizedModel, quantize_model
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.schedule import Unit
from sottovoce.quantization.sequential import QuantizedLayer
from sottovoce.system.progress import Progress

PRICE_ROWS = 64  # of each layer, on which formats are priced; all rows share the inputs
PRICES, OTHERS = "prices", "others"


@dataclass(frozen=True, eq=False)
class Attempt:
    """`others`: layers in further formats, by name and format, from the same statistics. `errors`: of each layer by format."""

    result: QuantizedModel
    others: Mapping[tuple[str, NumberFormat], LayerResult]
    errors: Mapping[tuple[str, NumberFormat], float]


class Quantizer:
    """Quantizes one model with one method and one calibration set by several plans."""

    def __init__(
        self,
        model: SpeechModel,
        recipe: Recipe,
        speech: CalibrationSpeech,
        units: Sequence[Unit],
        *,
        batch_size: int,
        seed: int,
        run: StoredRun,
        progress: Progress,
    ) -> None:
        self.model, self.recipe, self.speech, self.units = model, recipe, speech, units
        self.batch_size, self.seed, self.run, self.progress = batch_size, seed, run, progress
        self.menu = {layer.name: [f for f in unit.menu if f is not None] for unit in units for layer in unit.layers}
        self.runs = 0

    def quantize(
        self, stage: str, plan: Plan, *, others: Mapping[str, Sequence[NumberFormat]] | None = None, price: bool = False
    ) -> Attempt:
        """Quantize by `plan`; also quantize layers in the formats that `others` names, and `price` every format of the menu."""
        state, beside = self.run.stage(stage), self.run.stage(f"{stage}-{OTHERS}")
        wanted = others or {}
        # Stored before the layer itself, so a run that was stopped in between comes to the layer again.
        made_before = beside.finished_layers().keys()

        def look(layer: QuantizedLayer) -> None:
            name = layer.layer.name
            for k, number_format in enumerate(wanted.get(name, ())):
                if f"{name}|{k}" not in made_before:
                    beside.add_layer(f"{name}|{k}", layer.in_format(number_format))
            if price:
                state.add_value(PRICES, {"layer": name, "errors": self._price(layer)})

        result = quantize_model(
            self.model,
            plan,
            self.recipe,
            self.speech,
            batch_size=self.batch_size,
            seed=self.seed,
            state=state,
            progress=self.progress,
            on_layer=look,
        )
        self.runs += 1
        found = dict[tuple[str, NumberFormat], LayerResult]()
        for name, made in beside.finished_layers().items():
            found[name.rpartition("|")[0], made.weight.format] = made
        return Attempt(result, found, self._prices(state.values(PRICES)))

    def _price(self, layer: QuantizedLayer) -> list[float]:
        method = self.recipe.method
        assert isinstance(method, GPTQ)  # noqa: S101 - as `fit_model` has made sure
        center = layer.layer.shift_invariant or layer.result.report.bias_absorbed
        views = layer.statistics.centered if center else layer.statistics.raw
        columns = column_weights(
            views.float32.hessian,
            layer.result.report.damping or 0.01,
            act_order=method.act_order,
            importance=method.hessian_weighted_scales,
        )
        rows = layer.weight[:: max(1, len(layer.weight) // PRICE_ROWS)]
        scale = len(layer.weight) / len(rows)
        return [scale * expected_error(rows, columns, number_format) for number_format in self.menu[layer.layer.name]]

    def _prices(self, values: Sequence[Any]) -> dict[tuple[str, NumberFormat], float]:
        return {
            (value["layer"], number_format): float(error)
            for value in values
            for number_format, error in zip(self.menu[value["layer"]], value["errors"], strict=True)
        }


def entry_errors(unit: Unit, errors: Mapping[tuple[str, NumberFormat], float]) -> tuple[float, ...]:
    """Return the error of each entry of a unit's menu: the sum over its layers; 0 for float16."""
    return tuple(
        0.0 if number_format is None else sum(errors[layer.name, number_format] for layer in unit.layers) for number_format in unit.menu
    )


def install(model: SpeechModel, quantized: SpeechModel, name: str, result: LayerResult | None) -> None:
    """Put a layer into `quantized`; None: as it is in the original `model`, in float16."""
    if result is None:
        copy_layer(quantized, model, name, half=True)
        return
    layer = next(layer for layer in model.layers() if layer.name == name)
    rounded = None if result.bias is None else result.bias.half().float()  # as it will be stored
    install_layer(model, quantized.network, layer, replace(result, bias=rounded))


@contextmanager
def layers_restored(model: SpeechModel, names: Sequence[str]) -> Iterator[None]:
    """Give some layers of `model`, and its token embedding, the parameters back in the end that they have in the beginning."""
    modules = [model.module(name) for name in [*names, model.embedding]]
    before = [dict(module.named_parameters(recurse=False)) for module in modules]
    try:
        yield
    finally:
        for module, parameters in zip(modules, before, strict=True):
            for kind, parameter in parameters.items():
                setattr(module, kind, parameter)
