"""How a calibration keeps below a limit of memory: batch size, and whether paused activations go to a file.

The peak is foreseen from one window, which is sent through the network once, and from the shapes of the layers:

    peak = memory now + features + weights and codes of the result + activations of all passes + the larger of what a forward pass of one
           batch takes for a moment and what solving the widest layer takes

With a file there are the activations of one batch in place of all, and once more while its pass runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.errors import MachineError, RecipeError
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.batches import PositionWeights, make_batches
from sottovoce.quantization.lockstep import run_in_lockstep
from sottovoce.quantization.methods import GPTQ, Method
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.spill import held_tensors
from sottovoce.quantization.windows import Windows
from sottovoce.system.memory import keep_freed_memory, memory_bytes, peak_memory_bytes, reset_peak_memory

SQUARES = 31  # matrices [in, in] in float64 while a layer is solved: moments of two folds and their sum, centered too, factors, copies
OBLONGS = 24  # matrices [out, in] in float32: target, codes, scales and values of each, errors, candidates on the sampled rows
LIBRARIES = 48 << 20  # what is taken once, by the first solve
ROUND = 1.02  # for what is counted nowhere
SLACK = 1.01  # of the limit that a refusal names: the next process may have a little more to begin with


@dataclass(frozen=True, kw_only=True)
class WindowMemory:
    """What one window takes, in bytes. `live`: at most, while its pass is paused, in one network; `moment`: on top of that while its
    pass runs; `features`: of the encoder's inputs. `now`: memory of the process before."""

    now: int
    live: int
    moment: int
    features: int


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """`peak_bytes`: what is foreseen. `spill`: whether activations go to a file, which then takes `file_bytes`."""

    batch_size: int
    spill: bool
    peak_bytes: int
    file_bytes: int = 0


def plan_memory(
    model: SpeechModel, plan: Plan, method: Method, windows: Windows, limit: int, *, batch_size: int, processes: int = 1
) -> MemoryPlan:
    """Return the plan that changes least and keeps below `limit` bytes: smaller batches first, then a file.

    `processes`: that share the windows, each with this limit. Raises `MachineError` with the smallest limit that can be kept, and
    `RecipeError` for a method that does not go layer by layer.
    """
    check_method(method)
    measured = measure_window(model, plan, windows)
    shapes = [layer.shape for layer in plan.layers]
    count = -(-len(windows) // processes)
    sizes = [batch_size >> k for k in range(batch_size.bit_length())] if model.fixed_length else [batch_size]
    tried = [
        foresee(measured, shapes, count, networks=method.n_networks, batch_size=size if model.fixed_length else 1, spill=spill)
        for spill in (False, True)
        for size in sizes
    ]
    for found in tried:
        if found.peak_bytes <= limit:
            return found
    least = min(found.peak_bytes for found in tried)
    raise MachineError(
        f"{_gib(limit)} of memory are not enough for {count} windows of {model.source}: {_gib(int(SLACK * least))} are the "
        "least; give that to --max-memory, or fewer --utterances"
    )


def check_method(method: Method) -> None:
    """Raise `RecipeError` for a method that does not go layer by layer, and so has no use for a limit of memory."""
    if not isinstance(method, GPTQ):
        raise RecipeError(f"a limit of memory is for methods that go layer by layer, and {method.title} does not; leave out --max-memory")


def foresee(
    measured: WindowMemory, shapes: Sequence[tuple[int, int]], count: int, *, networks: int, batch_size: int, spill: bool
) -> MemoryPlan:
    """Foresee the peak of a calibration on `count` windows; `shapes` `[out, in]`: of the layers."""
    whole = networks * count * measured.live
    live = networks * min(batch_size, count) * measured.live if spill else whole
    result = sum(5 * rows * columns for rows, columns in shapes)  # float32 values and uint8 codes
    moment, solving = batch_size * measured.moment, solving_bytes(shapes)
    # While a layer is solved, all activations are in the file, but for a batch that was read back for the sums.
    work = live + (max(live + moment, solving) if spill else max(moment, solving))
    peak = measured.now + LIBRARIES + count * measured.features + result + work
    return MemoryPlan(batch_size=batch_size, spill=spill, peak_bytes=int(ROUND * peak), file_bytes=whole if spill else 0)


def solving_bytes(shapes: Sequence[tuple[int, int]]) -> int:
    """Return what solving the costliest layer takes."""
    return max(8 * SQUARES * columns**2 + 4 * OBLONGS * rows * columns for rows, columns in shapes)


@torch.no_grad()
def measure_window(model: SpeechModel, plan: Plan, windows: Windows) -> WindowMemory:
    """Send the longest window through the network, pausing at every layer of `plan`."""
    longest = max(range(len(windows)), key=lambda i: len(windows.samples[i]))
    with keep_freed_memory():
        now = memory_bytes()
        batch = make_batches(model, windows, batch_size=1, positions=PositionWeights(), wanted=lambda piece: longest in piece.rows)[0]
        features = sum(value.numel() * value.element_size() for value in batch.inputs.values() if isinstance(value, Tensor))
        weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.network.parameters(), *model.network.buffers())}
        given = {value.untyped_storage().data_ptr() for value in batch.inputs.values() if isinstance(value, Tensor)}
        reset_peak_memory()
        live, before = 0, memory_bytes()
        frames = list[object]()
        for _ in run_in_lockstep([model.network], [batch.inputs], [layer.name for layer in plan.layers], watch=frames.append):
            storages = {
                tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for tensor in held_tensors([frames.pop()])  # type: ignore[list-item]
            }
            live = max(live, sum(size for place, size in storages.items() if place not in weights | given))
        moment = max(peak_memory_bytes() - before - live, live // 2)
    return WindowMemory(now=now, live=live, moment=moment, features=features)


def _gib(count: int) -> str:
    return f"{math.ceil(100 * count / (1 << 30)) / 100:.2f} GiB"
