"""Forward passes that walk through a network side by side, stopping together at every layer of interest.

Each batch runs through each network as a coroutine (greenlet). A forward pre-hook on every target module hands control
back to the driver, so when all coroutines stand at the same module, the driver holds that module's inputs for all batches
and all networks, may replace its weights, and lets everyone walk on. One forward pass per network and batch is all that
is ever run, and the order of the modules is the order in which the network calls them.

Memory: what the paused forward passes keep alive, which is the residual stream and the inputs of the current block, per
batch and network. See `docs/calibration.md` for the bound and measurements.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import greenlet
import torch
from torch import Tensor, nn

from sottovoce.errors import CalibrationError
from sottovoce.quantization.spill import Spill, held_tensors
from sottovoce.system.memory import release_freed_memory


@dataclass(frozen=True, eq=False)
class PausedLayer:
    """All coroutines stand before the module `name`. `inputs[s][b]`: its input in network s on batch b."""

    name: str
    inputs: list[list[Tensor]]


def run_in_lockstep(
    networks: Sequence[nn.Module],
    batches: Sequence[dict[str, Any]],
    targets: Collection[str],
    spill: Spill | None = None,
    watch: Callable[[Any], None] | None = None,
) -> Iterator[PausedLayer]:
    """Yield a `PausedLayer` for each target module, in calling order. The networks share module names; run without gradients.

    `spill`: where paused passes leave their tensors; the inputs of a `PausedLayer` are then empty outside of
    `spill.loaded`. `watch`: is shown the frame of every pass when it pauses.

    Once every target was visited, the forward passes are abandoned where they stand.
    Raises `CalibrationError` if the coroutines part ways, if a target is called twice in one pass, or if one is never called.
    """
    driver = greenlet.getcurrent()
    # First of all hooks: weights that visit a device come when the pass goes on.
    hooks = [network.get_submodule(name).register_forward_pre_hook(_pause(name), prepend=True) for network in networks for name in targets]
    walkers = [[greenlet.greenlet(_walk(network, batch), driver) for batch in batches] for network in networks]
    visited: set[str] = set()
    undo = _compute_once(networks)
    try:
        while len(visited) < len(targets):
            # Batch by batch, so that what one network has just computed for a batch is there for the next network.
            release_freed_memory()  # what solving left is of no use to the next, larger tensors, and would add up
            stops = list(zip(*[_walk_on([row[b] for row in walkers], spill) for b in range(len(batches))], strict=True))
            for walker in (walker for row in walkers for walker in row):
                if watch is not None:
                    watch(walker.gr_frame)
            name = _common_name(stops, visited, targets)
            visited.add(name)
            paused = PausedLayer(name, [[stop[1] for stop in row] for row in stops])
            del stops
            yield paused
            del paused  # here nothing holds the inputs when the passes go on
    finally:
        undo()
        for hook in hooks:
            hook.remove()
        for row in walkers:
            for walker in row:
                if walker:  # has begun, and has not ended
                    walker.throw(greenlet.GreenletExit)


def _walk_on(walkers: Sequence[Any], spill: Spill | None) -> list[Any]:
    """Let the passes of all networks on one batch go on to their next stops."""
    if spill is None:
        return [walker.switch() for walker in walkers]
    spill.bring_back(held_tensors([walker.gr_frame for walker in walkers]))
    stops = [walker.switch() for walker in walkers]
    spill.park([walker.gr_frame for walker in walkers])
    release_freed_memory()  # nor are the pieces of this batch to the next one
    return stops


def _compute_once(networks: Sequence[nn.Module]) -> Callable[[], None]:
    """Let convolutions with the same weights and the same input be computed by the first network only.

    The convolutional stem comes before everything that is quantized, and is a tenth of an encoder's work. Returns what undoes it.
    """
    shared = []
    for name, module in networks[0].named_modules() if len(networks) > 1 else ():
        if type(module) not in (nn.Conv1d, nn.Conv2d):
            continue  # a convolution of the model's own may take more than its input
        twins = [network.get_submodule(name) for network in networks]
        if all(twin.weight is module.weight and twin.bias is module.bias for twin in twins):
            passed_on = _PassedOn(len(twins) - 1)
            for twin in twins:
                twin.forward = partial(passed_on, twin.forward)
            shared += twins

    def undo() -> None:
        for twin in shared:
            del twin.forward

    return undo


class _PassedOn:
    """Computes a function, and remembers its output for the next `times` calls with an equal input."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.left, self.known = 0, dict[str, Tensor]()

    def __call__(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        if self.left and torch.equal(inputs, self.known["input"]):
            self.left -= 1
        else:
            self.left, self.known = self.times, {"input": inputs, "output": function(inputs)}
        output = self.known["output"]
        if not self.left:
            self.known = {}
        return output


def _walk(network: nn.Module, batch: dict[str, Any]) -> Any:
    def run() -> None:
        network(**batch)

    return run


def _pause(name: str) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        walker = greenlet.getcurrent()
        if walker.parent is None:
            raise CalibrationError(f"{name} was called outside of the calibration pass")
        walker.parent.switch((name, args[0]))

    return hook


def _common_name(stops: Sequence[Sequence[Any]], visited: set[str], targets: Collection[str]) -> str:
    names = {stop[0] if stop is not None else None for row in stops for stop in row}
    if len(names) > 1:
        raise CalibrationError(
            f"the forward passes call different layers: {sorted(map(str, names))}. "
            "The order of layers must not depend on the audio or on the weights"
        )
    name = names.pop()
    if name is None:
        raise CalibrationError(
            "these layers were planned but never called as modules in a forward pass: "
            f"{', '.join(sorted(set(targets) - visited))}. Leave them out with a rule, or calibrate with inputs that use them"
        )
    if name in visited:
        raise CalibrationError(f"{name} is called more than once in a forward pass; leave it out with a rule")
    return str(name)
