"""Put quantized weights into a network."""

from typing import Any

from torch import Tensor, nn

from sottovoce.models.layers import Layer
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.layer import LayerResult, round_layer
from sottovoce.quantization.plan import Plan


def round_all_layers(model: SpeechModel, network: Any, plan: Plan) -> dict[str, LayerResult]:
    """Round every planned layer of `network` to nearest and install what comes out."""
    solutions = {}
    for layer, grid in plan.layers:
        solutions[layer.name] = round_layer(layer, network.get_submodule(layer.name).weight, grid)
        install_layer(model, network, layer, solutions[layer.name])
    return solutions


def install_layer(model: SpeechModel, network: Any, layer: Layer, solution: LayerResult) -> None:
    module = network.get_submodule(layer.name)
    set_parameters(module, solution.weight.dequantize(), module.bias if solution.bias is None else solution.bias)
    if layer.name == model.head and model.tied:
        network.get_submodule(model.embedding).weight = module.weight


def round_floats_to_float16(network: nn.Module, plan: Plan) -> None:
    """What stays in floating point is stored as float16: round it now, so that what is measured is what is written."""
    # Planned weights stay, and with them the embedding that is tied to a planned head.
    planned = [network.get_parameter(f"{layer.name}.weight") for layer, _ in plan.layers]
    done = {id(parameter): parameter for parameter in planned}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in done:
                done[id(parameter)] = nn.Parameter(parameter.half().float(), requires_grad=False)
                done[id(done[id(parameter)])] = done[id(parameter)]
            setattr(module, name, done[id(parameter)])


def set_parameters(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """New parameters, since the old tensors are shared with the original network."""
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)
