"""Round to nearest with an importance matrix: mean squared inputs of the original network weight the search of scales."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sottovoce.models.batching import Batch
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.collect import collect_statistics
from sottovoce.quantization.install import planned_layers, round_all_layers
from sottovoce.quantization.layer import LayerResult
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.sharding import broadcast_tensor
from sottovoce.system.devices import share_weights
from sottovoce.system.progress import LAYERS, Progress
from sottovoce.system.ranks import Ranks


def round_with_importance(
    model: SpeechModel, plan: Plan, batches: Sequence[Batch], ranks: Ranks, progress: Progress
) -> tuple[Any, dict[str, LayerResult]]:
    """Collect the mean squared inputs of every layer, then round them all. Return the network and its layers."""
    layers = planned_layers(model, plan)
    seen: dict[str, Tensor] = {}
    for layer, statistics in collect_statistics([model.network], batches, layers, ranks=ranks):
        progress(LAYERS, len(seen), len(layers), layer.name)
        own = statistics.total.moments.hessian.importance if ranks.leads else None
        seen[layer.name] = broadcast_tensor(ranks, own)
    network: Any = share_weights(model.network)
    progress(LAYERS, len(layers), len(layers))
    return network, round_all_layers(model, network, plan, seen)
