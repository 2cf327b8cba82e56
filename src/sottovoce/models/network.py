"""Copies of a network that share its weights, and quiet generation."""

import copy
from typing import Any

from torch import Tensor, nn
from transformers.utils import logging as transformers_logging


def share_weights(network: nn.Module) -> nn.Module:
    """A copy of `network` with modules of its own that share all tensors; replace a parameter to change only the copy."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


class EncoderOutputs:
    """Remembers what a network's encoder returns, batch by batch, so that its decoder can run again for little.

    (What is remembered is what the paused forward passes hold anyway.)
    """

    def __init__(self, network: Any, encoder: str) -> None:
        self._encoder = encoder
        self._outputs: list[Any] = []
        self._again = share_weights(network)
        self._hook = network.get_submodule(encoder).register_forward_hook(self._remember)

    def _remember(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        self._outputs.append(output)

    def decoder_again(self) -> nn.Module:
        """The network as it was at first, with its encoder returning what was remembered, in the same order and once; where nothing was
        (its embedding is called before its encoder), the whole network. Nothing is remembered from now on."""
        self._hook.remove()
        if self._outputs:
            outputs, self._outputs = iter(self._outputs), []
            self._again.get_submodule(self._encoder).forward = lambda *_args, **_kwargs: next(outputs)
        return self._again


def choice_of_tokens(temperature: float) -> dict[str, Any]:
    """Return the settings of `generate` by which the next token is chosen: greedy at 0, else sampled from the whole vocabulary."""
    if temperature == 0:
        return {"num_beams": 1, "do_sample": False}
    return {"num_beams": 1, "do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def generate(network: Any, *inputs: Tensor, **settings: Any) -> Any:
    """`network.generate(*inputs, **settings)`, without its notices, batch by batch, that these go before the model's own settings."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(max(before, transformers_logging.ERROR))
    try:
        return network.generate(*inputs, **settings)
    finally:
        transformers_logging.set_verbosity(before)
