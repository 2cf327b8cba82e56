"""What ranks send each other about layers: it arrives as it was."""

from typing import Any

import pytest
import torch

from sottovoce.core.affine import Affine
from sottovoce.core.rtn import rtn
from sottovoce.models.layers import Layer
from sottovoce.quantization.layer import LayerResult, round_layer
from sottovoce.quantization.sharding import broadcast_layer, broadcast_layers, broadcast_tensor
from sottovoce.system.ranks import ALONE, Ranks


class Post(Ranks):
    """One of two processes in this one: what the first sends, the second finds."""

    def __init__(self, rank: int, sent: list[Any]) -> None:
        super().__init__(rank, 2)
        self.sent = sent

    def broadcast(self, data: bytes | None) -> bytes:
        assert (data is None) == (self.rank > 0)
        if data is None:
            return bytes(self.sent.pop(0))
        self.sent.append(data)
        return data

    def exchange(self, value: Any) -> list[Any]:
        if self.rank:
            return [self.sent.pop(0), value]
        self.sent.append(value)
        return [value, None]


def layer(name: str, *, bias: bool) -> LayerResult:
    generator = torch.Generator().manual_seed(len(name))
    made = round_layer(Layer(name, "encoder", "frames"), torch.randn(8, 64, generator=generator), Affine(bits=3, group_size=32))
    return LayerResult(made.weight, torch.arange(8.0) if bias else None, made.report)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_arrives_as_it_was_sent(bias: bool) -> None:
    sent, result = list[Any](), layer("a", bias=bias)
    assert broadcast_layer(Post(0, sent), result) is result
    arrived = broadcast_layer(Post(1, sent), None)
    assert arrived.report == result.report
    assert arrived.weight.format == result.weight.format
    assert torch.equal(arrived.weight.dequantize(), result.weight.dequantize())
    assert (arrived.bias is None) == (result.bias is None)
    if result.bias is not None:
        assert torch.equal(arrived.bias, result.bias)
    assert broadcast_layer(ALONE, result) is result


def test_layers_arrive_in_their_order() -> None:
    sent, finished = list[Any](), {name: layer(name, bias=False) for name in ("second", "first")}
    assert broadcast_layers(Post(0, sent), finished) == finished
    arrived = broadcast_layers(Post(1, sent), {})
    assert list(arrived) == ["second", "first"]
    assert [one.report.name for one in arrived.values()] == ["second", "first"]
    assert broadcast_layers(ALONE, finished) == finished


def test_a_tensor_arrives_as_it_was_sent() -> None:
    sent, tensor = list[Any](), rtn(torch.randn(8, 32), Affine(group_size=32)).dequantize().T
    assert broadcast_tensor(Post(0, sent), tensor) is tensor
    assert torch.equal(broadcast_tensor(Post(1, sent), None), tensor)
    assert broadcast_tensor(ALONE, tensor) is tensor
