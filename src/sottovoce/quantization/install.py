"""Put quantized weights into a network."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sottovoce.models.layers import Layer
from sottovoce.models.parameters import set_parameters, tie_embedding
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.layer import LayerResult, round_layer
from sottovoce.quantization.plan import Plan


def planned_layers(model: SpeechModel, plan: Plan) -> list[Layer]:
    """Return the layers of `model` that `plan` quantizes, in the model's order."""
    return [layer for layer in model.layers() if layer.name in plan]


def round_all_layers(
    model: SpeechModel, network: Any, plan: Plan, importance: Mapping[str, Tensor] | None = None
) -> dict[str, LayerResult]:
    """Round every planned layer of `network` to nearest and install the result. `importance` `[in]`: of columns, by layer."""
    finished = {}
    for layer in planned_layers(model, plan):
        weight = network.get_submodule(layer.name).weight
        counts = None if importance is None else importance[layer.name].to(weight.device)
        finished[layer.name] = round_layer(layer, weight, plan.format(layer.name), counts)
        install_layer(model, network, layer, finished[layer.name])
    return finished


def install_layer(model: SpeechModel, network: Any, layer: Layer, result: LayerResult) -> None:
    """Replace the layer's weight and bias in `network`; a token embedding that is tied to the layer goes with it."""
    module = network.get_submodule(layer.name)
    device = module.weight.device
    set_parameters(module, result.weight.dequantize().to(device), module.bias if result.bias is None else result.bias.to(device))
    tie_embedding(model, network, layer.name)


def round_floats_to_float16(network: nn.Module, plan: Plan) -> None:
    """Round what stays in floating point to float16, as it will be stored: so what is measured is what is written."""
    # Planned weights stay, and with them the embedding that is tied to a planned head.
    planned = [network.get_parameter(f"{layer.name}.weight") for layer in plan.layers]
    done = {id(parameter): parameter for parameter in planned}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in done:
                done[id(parameter)] = nn.Parameter(parameter.half().float(), requires_grad=False)
                done[id(done[id(parameter)])] = done[id(parameter)]
            setattr(module, name, done[id(parameter)])
