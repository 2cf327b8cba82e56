"""AWQ for a whole model: search scales, fold them, round."""

from collections.abc import Sequence
from typing import Any

from sottovoce.core.awq import divide_outputs, scale_inputs, search_scales
from sottovoce.models.batching import Batch
from sottovoce.models.parameters import set_parameters
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.collect import collect_statistics
from sottovoce.quantization.install import planned_layers, round_all_layers
from sottovoce.quantization.layer import LayerResult
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.sharding import broadcast_tensor
from sottovoce.quantization.statistics import LayerStatistics
from sottovoce.system.devices import share_weights
from sottovoce.system.progress import LAYERS, Progress
from sottovoce.system.ranks import Ranks


def quantize_with_awq(
    model: SpeechModel, plan: Plan, batches: Sequence[Batch], ranks: Ranks, progress: Progress
) -> tuple[Any, dict[str, LayerResult]]:
    """Search scales on the original network's inputs, fold them all, and round. Return the network and its layers."""
    network: Any = share_weights(model.network)
    layers = planned_layers(model, plan)
    seen: dict[str, LayerStatistics] = {}
    for layer, statistics in collect_statistics([model.network], batches, layers, magnitudes=True, ranks=ranks):
        progress(LAYERS, len(seen), len(layers), layer.name)
        seen[layer.name] = statistics
    for mapping in model.awq_mappings():
        names = [name for name in mapping.targets if name in seen]
        if len(names) < len(mapping.targets):
            continue  # a target stays in floating point: its inputs must stay as they are
        found = None
        if ranks.leads:
            found = search_scales(
                [model.module(name).weight.to(seen[name].device) for name in names],
                [seen[name].total.moments.hessian.matrix.float() for name in names],
                [plan.format(name) for name in names],
                seen[names[0]].magnitude,
            ).scales
        scales = broadcast_tensor(ranks, found)
        source = network.get_submodule(mapping.source)
        weight, bias = divide_outputs(source.weight, getattr(source, "bias", None), scales.to(source.weight.device))
        set_parameters(source, weight, bias)
        for name in names:
            module = network.get_submodule(name)
            set_parameters(module, scale_inputs(module.weight, scales.to(module.weight.device)), module.bias)
    progress(LAYERS, len(layers), len(layers))
    return network, round_all_layers(model, network, plan)
