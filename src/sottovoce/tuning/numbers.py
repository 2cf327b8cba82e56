"""The numbers that tuning moves: scales and minima of quantized layers, norms, biases and tables of positions.

Scales are multiplied by `exp(move)`; a floating-point tensor of root mean square `r` becomes `w + move * r`. Both are rounded to what the
file stores in every forward pass, with gradients passed through (see `core.differentiable`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sottovoce.core.differentiable import decode_moved, first_moves, straight_through, with_moves
from sottovoce.core.float16 import finite_float16
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.models.parameters import set_parameters, tie_embedding
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.tune_record import Moved
from sottovoce.system.devices import share_weights

LEAST_SIZE = 0.01  # of a tensor, for the unit of its moves: one of zeros can move, too
MOVED_SHOWN = 8


class TunedNumbers:
    """The moves of a quantized model: all 0 at first, when it computes exactly as it does in its file.

    `scales`: by layer and parameter; `floats`: by the name of the parameter in the network.
    """

    def __init__(self, model: SpeechModel, weights: Mapping[str, QuantizedTensor]) -> None:
        """`model` computes with the dequantized `weights` (by layer), and with float16 numbers elsewhere; moves lie where it computes."""
        device = model.placement.device
        self.model, self.weights = model, {name: weight.to(device) for name, weight in weights.items()}
        self.scales = {name: first_moves(weight) for name, weight in self.weights.items()}
        self._start = float_parameters(model, self.weights)
        self._unit = {name: tensor.square().mean().sqrt().clamp(min=LEAST_SIZE) for name, tensor in self._start.items()}
        self.floats = {name: torch.zeros_like(tensor) for name, tensor in self._start.items()}
        for move in self.all():
            move.requires_grad_()
        self.codes = codes_digest(self.weights)

    def scale_moves(self) -> list[Tensor]:
        """Return the moves of scales and minima."""
        return [move for moves in self.scales.values() for move in moves.values()]

    def float_moves(self) -> list[Tensor]:
        """Return the moves of what is in floating point."""
        return list(self.floats.values())

    def all(self) -> list[Tensor]:
        """Return all moves, in an order that never changes."""
        return [*self.scale_moves(), *self.float_moves()]

    @property
    def count(self) -> int:
        """How many numbers can move."""
        return sum(move.numel() for move in self.all())

    def decoded(self) -> dict[str, Tensor]:
        """Return the network's parameters that can move, by name, differentiable in the moves."""
        found = {f"{name}.weight": decode_moved(self.weights[name], moves) for name, moves in self.scales.items() if moves}
        for name, move in self.floats.items():
            moved = self._start[name] + move * self._unit[name]
            found[name] = straight_through(moved, finite_float16(moved.detach()))
        return found

    def mean_square(self) -> Tensor:
        """Return the mean of all squared moves."""
        total = torch.stack([move.square().sum() for move in self.all()]).sum()
        return total / self.count

    def restore(self, moves: Sequence[Tensor]) -> None:
        """Set all moves to copies of `moves`, in the order of `all`."""
        with torch.no_grad():
            for own, other in zip(self.all(), moves, strict=True):
                own.copy_(other)

    @torch.no_grad()
    def stored(self) -> tuple[Any, dict[str, QuantizedTensor]]:
        """Return a network and its weights by layer as a file would hold them: copies, but for what cannot move."""
        network = share_weights(self.model.network)
        weights = {name: with_moves(weight, self.scales[name]) for name, weight in self.weights.items()}
        for name, weight in weights.items():
            module: Any = network.get_submodule(name)
            set_parameters(module, weight.dequantize(), module.bias)
            tie_embedding(self.model, network, name)
        decoded = self.decoded()
        for name in self.floats:
            path, _, own = name.rpartition(".")
            setattr(network.get_submodule(path), own, nn.Parameter(decoded[name].detach().clone(), requires_grad=False))
        return network, weights

    @torch.no_grad()
    def moved_most(self) -> tuple[Moved, ...]:
        """Return the tensors that have moved most, first the farthest."""
        moves = {f"{layer}.{name}": move for layer, of_layer in self.scales.items() for name, move in of_layer.items()} | self.floats
        found = [Moved(name=name, change=round(float(move.square().mean().sqrt()), 6)) for name, move in moves.items()]
        return tuple(sorted(found, key=lambda one: (-one.change, one.name))[:MOVED_SHOWN])


def float_parameters(model: SpeechModel, layers: Mapping[str, QuantizedTensor]) -> dict[str, Tensor]:
    """Return what tuning may move of a network's floating-point numbers, by name: vectors (norms, biases) and tables of positions."""
    quantized = {f"{name}.weight" for name in layers}
    return {
        name: parameter.detach().float().clone()
        for name, parameter in model.network.named_parameters()
        if name not in quantized and (parameter.ndim == 1 or name in model.position_tables)
    }


def codes_digest(weights: Mapping[str, QuantizedTensor]) -> str:
    """Return the sha256 of all codes by layer."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].codes.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


class Student:
    """A copy of a quantized network whose movable parameters are plain tensors, set before each pass."""

    def __init__(self, numbers: TunedNumbers) -> None:
        network = share_weights(numbers.model.network)
        self.model = numbers.model.with_network(network)
        self._numbers = numbers
        self._places = dict[str, list[tuple[nn.Module, str]]]()
        tied = numbers.model.tied
        for name in numbers.decoded():
            places = [name]
            if tied and name == f"{numbers.model.head}.weight":
                places.append(f"{numbers.model.embedding}.weight")
            self._places[name] = [(network.get_submodule(place.rpartition(".")[0]), place.rpartition(".")[2]) for place in places]
        for module, own in (place for places in self._places.values() for place in places):
            delattr(module, own)

    def set(self) -> tuple[list[Tensor], list[Tensor]]:
        """Decode with the present moves. Return what was decoded, and leaves of the same values that the network now computes with.

        Gradients gather in the leaves, utterance by utterance, so that the graph of one utterance is in memory at a time; the caller then
        hands them on to what was decoded.
        """
        decoded, leaves = list[Tensor](), list[Tensor]()
        for name, tensor in self._numbers.decoded().items():
            leaf = tensor.detach().requires_grad_()
            for module, own in self._places[name]:
                setattr(module, own, leaf)
            decoded.append(tensor)
            leaves.append(leaf)
        return decoded, leaves
