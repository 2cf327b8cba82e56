"""Quantize layer by layer in calling order, each on the inputs that the layers before it give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from sottovoce.core.error_metrics import relative_weight_error
from sottovoce.core.fade import NO_CORRECTION, diagnostic_strengths, held_out_choice, reliability_score
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.rtn import rtn
from sottovoce.models.batching import Batch
from sottovoce.models.layers import Layer
from sottovoce.models.network import EncoderOutputs
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.collect import collect_statistics
from sottovoce.quantization.curvature import PositionFactors, position_factors
from sottovoce.quantization.install import install_layer, planned_layers
from sottovoce.quantization.layer import LayerResult, quantize_layer, with_final_statistics
from sottovoce.quantization.methods import GPTQ, QEP
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.run_state import RunState
from sottovoce.quantization.sharding import broadcast_layer, broadcast_layers
from sottovoce.quantization.spill import Spill
from sottovoce.quantization.statistics import LayerStatistics
from sottovoce.system.devices import share_weights
from sottovoce.system.progress import LAYERS, Progress
from sottovoce.system.ranks import Ranks

DIAGNOSTIC_WINDOWS = 8  # of each fold, in the pass for the rule "diagnostic"
DIAGNOSTIC_DAMPING = 0.1  # of that pass


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """A layer that has just been quantized, for whoever wants to look at it while its statistics are there.

    `weight` `[out, in]`: before. `in_format(other)`: the layer quantized in another format, from the same statistics.
    """

    layer: Layer
    weight: Tensor
    statistics: LayerStatistics
    result: LayerResult
    in_format: Callable[[NumberFormat], LayerResult]


LayerObserver = Callable[[QuantizedLayer], None]


def quantize_sequentially(
    model: SpeechModel,
    plan: Plan,
    method: GPTQ,
    batches: Sequence[Batch],
    *,
    head_embedding_weight: float,
    seed: int,
    state: RunState,
    ranks: Ranks,
    few: Sequence[Batch],
    spill: Callable[[Sequence[nn.Module]], Spill] | None,
    progress: Progress,
    on_layer: LayerObserver | None = None,
) -> tuple[Any, dict[str, LayerResult]]:
    """Run GPTQ or what is built on it: each layer is quantized when both networks have reached it, and installed at once.

    `few`: batches of the pass for the rule "diagnostic". `seed`: of the curvature, where the method weighs by it. `spill`: makes the file
    for paused activations, where there is to be one. `ranks`: each has batches of its own; rank 0 solves, and tells the others. Layers that
    `state` has (rank 0's) are installed as they are; further ones are shown to `on_layer`, then added to it.
    Return the network and its layers.
    """
    layers = planned_layers(model, plan)
    by_diagnostics = isinstance(method, QEP) and method.strength == "diagnostic"
    strengths = diagnostic_pass(model, plan, layers, few) if by_diagnostics and ranks.leads else {}
    solver = _Solver(model, plan, method, layers, strengths, state=state, ranks=ranks, progress=progress, on_layer=on_layer)
    network, finished = solver.network, solver.finished
    factors: PositionFactors | None = None
    if method.curvature and len(finished) < len(layers):
        factors = position_factors(model, batches, layers, share=method.curvature, seed=seed, progress=progress)
    kept = None if spill is None else spill([model.network, network])

    # A head that is also the token embedding is quantized when the decoder is about to look its first tokens up: so the decoder's
    # layers see the embedding as it will be, and correct for it. Its inputs come from a decoder that is not quantized yet.
    tied = next((layer for layer in layers if layer.name == model.head and model.tied), None)
    before: dict[str, Callable[[], None]] = {}
    if tied is not None and tied.name not in finished:
        encoded = EncoderOutputs(network, model.encoder)

        def quantize_tied(layer: Layer = tied) -> None:
            again = encoded.decoder_again() if kept is None else encoded.decoder_again(kept.bring_back)
            for _, statistics in collect_statistics([again], batches, [layer], ranks=ranks, spill=kept, factors=factors):
                solver.solve(layer, statistics, head_embedding_weight)

        before[model.embedding] = quantize_tied
    networks = [model.network, network] if method.n_networks == 2 else [network]
    missing = [layer for layer in layers if layer.name not in finished or layer is tied]
    compensate = isinstance(method, QEP) and method.compensate_residual
    walk = collect_statistics(
        networks, batches, missing, compensate_residual=compensate, before=before, ranks=ranks, spill=kept, factors=factors
    )
    for layer, statistics in walk:
        if layer is tied:
            head = finished.pop(layer.name)  # last in the order of calls
            finished[layer.name] = with_final_statistics(head, model.module(layer.name).weight, statistics)
        else:
            solver.solve(layer, statistics)
    if kept is not None:
        kept.forget()
    progress(LAYERS, len(layers), len(layers))
    return network, finished


class _Solver:
    """Quantizes a layer from its statistics, puts it into `network` at once, and keeps it in `finished` and in the state of the run.

    Layers that the state has already are put in at the start. Rank 0 solves, and tells the others.
    """

    def __init__(
        self,
        model: SpeechModel,
        plan: Plan,
        method: GPTQ,
        layers: Sequence[Layer],
        strengths: Mapping[str, float],
        *,
        state: RunState,
        ranks: Ranks,
        progress: Progress,
        on_layer: LayerObserver | None,
    ) -> None:
        self._model, self._plan, self._method, self._strengths, self._count = model, plan, method, strengths, len(layers)
        self._state, self._ranks, self._progress, self._on_layer = state, ranks, progress, on_layer
        self.network: Any = share_weights(model.network)
        self.finished: dict[str, LayerResult] = broadcast_layers(ranks, state.finished_layers())
        for layer in layers:
            if layer.name in self.finished:
                install_layer(model, self.network, layer, self.finished[layer.name])

    def solve(self, layer: Layer, statistics: LayerStatistics, embedding_weight: float = 0.0) -> None:
        """Quantize `layer`; `embedding_weight`: as for `quantize_layer`."""
        self._progress(LAYERS, len(self.finished), self._count, layer.name)
        if not self._ranks.leads:
            self.finished[layer.name] = broadcast_layer(self._ranks, None)
            install_layer(self._model, self.network, layer, self.finished[layer.name])
            return
        module = self.network.get_submodule(layer.name)
        weight = module.weight.to(statistics.device)
        in_format = partial(
            quantize_layer,
            layer,
            weight,
            None if module.bias is None else module.bias.to(statistics.device),
            statistics,
            method=self._method,
            strength=self._strengths.get(layer.name),
            embedding_weight=embedding_weight,
        )
        result = broadcast_layer(self._ranks, in_format(self._plan.format(layer.name)))
        self.finished[layer.name] = result
        if self._on_layer is not None:
            self._on_layer(QuantizedLayer(layer, weight, statistics, result, in_format))
        install_layer(self._model, self.network, layer, result)
        self._state.add_layer(layer.name, result)


def diagnostic_pass(model: SpeechModel, plan: Plan, layers: Sequence[Layer], few: Sequence[Batch]) -> dict[str, float]:
    """Return strengths by the rule "diagnostic": from vulnerability and reliability of every layer on the batches `few`."""
    vulnerability, reliability = dict[str, float](), dict[str, float]()
    for layer, statistics in collect_statistics([model.network], few, layers):
        weight, number_format = model.module(layer.name).weight.to(statistics.device), plan.format(layer.name)
        held_out = held_out_choice(weight, statistics.raw.folds, number_format, pairs=[(NO_CORRECTION, DIAGNOSTIC_DAMPING)])
        vulnerability[layer.name] = relative_weight_error(weight, rtn(weight, number_format).dequantize())
        reliability[layer.name] = reliability_score(held_out.calibrated_error, held_out.rounded_error)
    strengths: dict[str, float] = {}
    for encoder in (True, False):
        names = [layer.name for layer in layers if (layer.part == "encoder") == encoder]
        if names:
            values = diagnostic_strengths([vulnerability[n] for n in names], [reliability[n] for n in names])
            strengths.update(zip(names, values, strict=True))
    return strengths
