"""What an encoder returned, kept for a second run of its decoder, and quiet generation."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from sottovoce.models.decoding import measured_config
from sottovoce.system.devices import share_weights


class EncoderOutputs:
    """Remember what a network's encoder returns, batch by batch, so that its decoder can run again at little cost.

    (The paused forward passes hold these tensors anyway.)
    """

    def __init__(self, network: Any, encoder: str) -> None:
        self._encoder = encoder
        self._outputs: list[Any] = []
        self._again = share_weights(network)
        self._hook = network.get_submodule(encoder).register_forward_hook(self._remember)

    def _remember(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        self._outputs.append(output)

    def decoder_again(self, bring_back: Callable[[Sequence[Tensor]], None] = lambda _: None) -> nn.Module:
        """Return the network as it was at first, with its encoder returning what was remembered, in the same order and once.

        `bring_back`: is given these tensors before they are used.

        Where nothing was remembered (the embedding is called before the encoder), return the whole network. Stop remembering.
        """
        self._hook.remove()
        if self._outputs:
            outputs, self._outputs = iter(self._outputs), []

            def again(*_args: Any, **_kwargs: Any) -> Any:
                output = next(outputs)
                bring_back([tensor for tensor in output.values() if isinstance(tensor, Tensor)])
                return output

            self._again.get_submodule(self._encoder).forward = again
        return self._again


def choice_of_tokens(temperature: float) -> dict[str, Any]:
    """Return the settings of `generate` by which the next token is chosen: greedy at 0, else sampled from the whole vocabulary."""
    if temperature == 0:
        return {"num_beams": 1, "do_sample": False}
    return {"num_beams": 1, "do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def generate(network: Any, *inputs: Tensor, **settings: Any) -> Any:
    """Call `network.generate(*inputs, **settings)` with the decoding that is measured, and the warnings of `transformers` silenced.

    The network's own settings stay what they are. They are replaced for the time of the call, since `generate` fills in from them
    whatever it is not given.
    """
    before, own = transformers_logging.get_verbosity(), network.generation_config
    transformers_logging.set_verbosity(max(before, transformers_logging.ERROR))
    network.generation_config = measured_config(own)
    try:
        return network.generate(*inputs, **settings)
    finally:
        network.generation_config = own
        transformers_logging.set_verbosity(before)
