"""Rounding with an importance matrix: what counts is the mean squared input of each column, over the positions that count."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sottovoce.core.affine import Affine
from sottovoce.core.hessian import LEAST_IMPORTANCE
from sottovoce.core.rtn import rtn
from sottovoce.models.batching import Batch
from sottovoce.models.layers import Layer
from sottovoce.quantization.importance import round_with_importance
from sottovoce.quantization.plan import Plan, PlannedLayer
from sottovoce.system.progress import silent
from sottovoce.system.ranks import ALONE

GRID = Affine(bits=2, group_size=32)


class TwoLayers(nn.Module):
    """The second layer reads what the first puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


def network() -> TwoLayers:
    torch.manual_seed(0)
    return TwoLayers().requires_grad_(False)


def heard() -> list[Batch]:
    """Two batches of two utterances of nine positions; channels differ in size, one is silent, and some positions count less or not."""
    generator = torch.Generator().manual_seed(1)
    size = torch.exp(torch.randn(32, generator=generator) * 1.5)
    size[7] = 0
    batches = []
    for number in range(2):
        inputs = {"x": torch.randn(2, 9, 32, generator=generator) * size}
        weights = torch.tensor([[1.0] * 9, [1.0] * 4 + [0.25] * 2 + [0.0] * 3])
        batches.append(Batch(inputs, {"frames": weights}, torch.tensor([0, 1]), number=number))
    return batches


def rounded() -> dict[str, torch.Tensor]:
    layers = [Layer("first", "encoder", "frames"), Layer("second", "encoder", "frames")]
    model = SimpleNamespace(network=network(), layers=lambda: layers, head="none", tied=False)
    plan = Plan(
        target="torch",
        layers=tuple(PlannedLayer(name=layer.name, part="encoder", format=GRID, shape=(1, 1)) for layer in layers),
    )
    _, found = round_with_importance(model, plan, heard(), ALONE, silent)  # type: ignore[arg-type]
    return {name: result.weight.dequantize() for name, result in found.items()}


def slow_importance(name: str) -> torch.Tensor:
    """Mean squared inputs of the network as it was, position by position, in units of their mean; at least a thousandth."""
    total, original = torch.zeros(original_width(name), dtype=torch.float64), network()
    for batch in heard():
        for x, weights in zip(batch.inputs["x"], batch.weights["frames"], strict=True):
            for position, weight in zip(x, weights, strict=True):
                seen = position if name == "first" else original.first(position).relu()
                total += float(weight) * seen.double().square()
    return (total / total.mean()).clamp(min=LEAST_IMPORTANCE)


def original_width(name: str) -> int:
    return int(network().get_submodule(name).weight.shape[1])  # type: ignore[union-attr, index]


@pytest.mark.parametrize("name", ["first", "second"])
def test_columns_count_by_their_mean_squared_input(name: str) -> None:
    weight, importance = network().get_parameter(f"{name}.weight"), slow_importance(name)
    values = rounded()[name]
    torch.testing.assert_close(values, rtn(weight, GRID, importance.float()).dequantize(), rtol=1e-6, atol=0)

    def error(of: torch.Tensor, columns: torch.Tensor) -> float:
        return float((importance * (of - weight).double().square())[:, columns].sum())

    plain, loud = rtn(weight, GRID).dequantize(), importance > importance.median()
    assert error(values, importance > 0) < error(plain, importance > 0)
    assert error(values, loud) < error(plain, loud)
