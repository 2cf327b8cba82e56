"""Parameters of one layer of a network: set, or copied from another network. A token embedding that is tied to the head goes with it."""

from typing import Any

from torch import Tensor, nn

from sottovoce.models.speech_model import SpeechModel


def set_parameters(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Give `module` new parameters, since the old tensors are shared with the original network. No bias: the old one stays."""
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)


def tie_embedding(model: SpeechModel, network: Any, name: str) -> None:
    """Give the token embedding of `network` the weight of its layer `name`, if that is the head and tied in `model`."""
    if name == model.head and model.tied:
        network.get_submodule(model.embedding).weight = network.get_submodule(name).weight


def copy_layer(target: SpeechModel, source: SpeechModel, name: str, *, half: bool = False) -> None:
    """Give a layer of `target` the parameters that it has in `source`; `half`: rounded to float16, as they will be stored."""
    found = {kind: one.detach() for kind, one in source.module(name).named_parameters(recurse=False)}
    if half:
        found = {kind: one.half().float() for kind, one in found.items()}
    set_parameters(target.module(name), found["weight"], found.get("bias"))
    tie_embedding(source, target.network, name)
