"""Passes side by side: what stops them, what they share, and how they end."""

from collections.abc import Callable

import greenlet
import pytest
import torch
from torch import nn

from sottovoce.errors import CalibrationError
from sottovoce.quantization.lockstep import run_in_lockstep


class Two(nn.Module):
    """Two layers, one after the other; keeps the passes that run through it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.passes = list[greenlet.greenlet]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes.append(greenlet.getcurrent())
        return self.second(self.first(x))


def inputs(count: int) -> list[dict[str, torch.Tensor]]:
    return [{"x": torch.full((2, 4), float(i))} for i in range(count)]


def test_passes_that_somebody_holds_end_too() -> None:
    network = Two()
    walk = run_in_lockstep([network], inputs(3), ["first", "second"])
    assert next(walk).name == "first"
    assert [one.dead for one in network.passes] == [False] * 3
    walk.close()
    assert [one.dead for one in network.passes] == [True] * 3


def test_inputs_come_by_network_and_batch() -> None:
    networks = [Two(), Two()]
    (stop,) = run_in_lockstep(networks, inputs(3), ["first"])
    assert [[float(x[0, 0]) for x in row] for row in stop.inputs] == [[0.0, 1.0, 2.0]] * 2


def test_a_hook_of_the_network_runs_when_the_pass_goes_on() -> None:
    """Such as one that brings a layer's weights: they are not wanted while all passes stand and wait."""
    network, done = Two(), list[str]()
    network.first.register_forward_pre_hook(lambda _module, _args: done.append("first"))
    walk = run_in_lockstep([network], inputs(2), ["first", "second"])
    next(walk)
    assert not done
    next(walk)
    assert done == ["first", "first"]


def test_a_layer_that_is_called_from_elsewhere_is_named() -> None:
    network = Two()
    walk = run_in_lockstep([network], inputs(1), ["first", "second"])
    next(walk)
    with pytest.raises(CalibrationError, match="first was called outside of the calibration pass"):
        network(torch.ones(2, 4))


def test_passes_that_part_ways_are_refused() -> None:
    class Choosing(Two):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x) if float(x[0, 0]) > 0 else self.second(x)

    with pytest.raises(CalibrationError, match=r"call different layers: \['first', 'second'\]"):
        next(run_in_lockstep([Choosing()], inputs(2), ["first", "second"]))


class Stem(nn.Module):
    """A convolution that counts its calls, and a layer."""

    def __init__(self, convolution: nn.Module, calls: list[int]) -> None:
        super().__init__()
        self.convolution, self.layer = convolution, nn.Linear(6, 2)
        plain = convolution.forward
        convolution.forward = lambda *args: (calls.append(1), plain(*args))[1]  # type: ignore[method-assign]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.convolution(x))


def shared(kind: type[nn.Module], *sizes: int) -> Callable[[], nn.Module]:
    """Modules of their own with the same weights."""
    first = kind(*sizes)

    def make() -> nn.Module:
        other = kind(*sizes)
        other.weight, other.bias = first.weight, first.bias
        return other

    return make


class Own(nn.Conv1d):
    """A convolution of a model's own."""


@pytest.mark.parametrize(
    ("kind", "shape", "networks", "calls"),
    [(nn.Conv1d, (1, 2, 8), 1, 2), (nn.Conv1d, (1, 2, 8), 2, 2), (nn.Conv1d, (1, 2, 8), 3, 2), (nn.Conv2d, (1, 2, 8, 8), 3, 2),
     (Own, (1, 2, 8), 2, 4)],
)  # fmt: skip
@torch.no_grad()
def test_a_convolution_of_all_networks_is_computed_once_for_each_batch(
    kind: type[nn.Module], shape: tuple[int, ...], networks: int, calls: int
) -> None:
    counted, make = list[int](), shared(kind, 2, 3, 3)
    first = {"x": torch.randn(shape)}
    # Where two batches are equal, each is computed all the same: nothing is remembered when all networks have had it.
    for batches in ([first, {"x": torch.randn(shape)}], [first, first]):
        stems = [Stem(make(), counted) for _ in range(networks)]
        wanted = [stems[0].convolution(batch["x"]) for batch in batches]
        counted.clear()
        (stop,) = run_in_lockstep(stems, batches, ["layer"])
        assert len(counted) == calls
        for row in stop.inputs:
            assert all(torch.equal(found, x) for found, x in zip(row, wanted, strict=True))


@torch.no_grad()
def test_a_convolution_with_a_bias_of_its_own_is_computed_for_itself() -> None:
    counted, make = list[int](), shared(nn.Conv1d, 2, 3, 3)
    stems = [Stem(make(), counted) for _ in range(2)]
    stems[1].convolution.bias = nn.Parameter(stems[1].convolution.bias + 1)
    batch = {"x": torch.randn(1, 2, 8)}
    wanted = [stem.convolution(batch["x"]) for stem in stems]
    counted.clear()
    (stop,) = run_in_lockstep(stems, [batch], ["layer"])
    assert len(counted) == 2
    assert [torch.equal(row[0], x) for row, x in zip(stop.inputs, wanted, strict=True)] == [True, True]
