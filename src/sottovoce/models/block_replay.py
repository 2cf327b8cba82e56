"""Run a network again from one of its blocks on: what the blocks before it return is remembered.

A block is a module of a list, `model.encoder.layers.3`. When only weights of block k are changed, all blocks before it return what they
returned before, so their work is saved.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

BLOCK = re.compile(r"^(.+?\.\d+)\.")
MOST_BYTES = 2 << 30  # remembered at most; beyond, everything runs again


def block_of(module: str) -> str | None:
    """Return the name of the outermost block that holds a module, or None."""
    found = BLOCK.match(module)
    return found.group(1) if found else None


def blocks_of(modules: Sequence[str]) -> list[str]:
    """Return the blocks of some modules, in the order of these."""
    return list(dict.fromkeys(block for module in modules if (block := block_of(module)) is not None))


class BlockReplay:
    """What the blocks of a network return, pass by pass.

    `blocks`: names of the blocks of one half of the network, in calling order. `record` remembers one run of several passes (batches);
    `replay` makes the next run, of the same passes in the same order, start at a block.
    """

    def __init__(self, network: nn.Module, blocks: Sequence[str], *, most_bytes: int = MOST_BYTES) -> None:
        self._modules = {name: network.get_submodule(name) for name in blocks}
        self._outputs = dict[str, list[Any]]()
        self._most_bytes = most_bytes

    def first(self, modules: Sequence[str]) -> str | None:
        """Return the first block that holds one of `modules`, or None if one of them is in no block."""
        found = [block_of(module) for module in modules]
        if None in found:
            return None
        return next((name for name in self._modules if name in found), None)

    def share_from(self, block: str | None) -> float:
        """Return the share of the blocks that run when the replay begins at `block`."""
        if block is None or not self._outputs:
            return 1.0
        return 1 - list(self._modules).index(block) / len(self._modules)

    @contextmanager
    def record(self) -> Iterator[None]:
        """Remember what the blocks return inside of this context."""
        self._outputs = {name: [] for name in self._modules}
        room = self._most_bytes
        hooks = []

        def remember(name: str, output: Any) -> None:
            nonlocal room
            room -= _bytes(output)
            if room >= 0:
                self._outputs[name].append(output)

        for name, module in self._modules.items():
            hooks.append(module.register_forward_hook(lambda _module, _args, output, name=name: remember(name, output)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            if room < 0:
                self._outputs = {}

    @contextmanager
    def replay(self, block: str | None) -> Iterator[None]:
        """Inside of this context, blocks before `block` return what was remembered. None: nothing is replayed."""
        names = list(self._modules)
        before = names[: names.index(block)] if block in self._modules and self._outputs else []
        replaced = list[nn.Module]()
        if before:
            outputs = self._outputs[before[-1]]
            for name in before:
                passes = iter(outputs)
                module: Any = self._modules[name]
                module.forward = lambda *_args, passes=passes, **_kwargs: next(passes)
                replaced.append(module)
        try:
            yield
        finally:
            for module in replaced:
                del module.forward


def _bytes(output: Any) -> int:
    if isinstance(output, Tensor):
        return output.numel() * output.element_size()
    return sum(map(_bytes, output)) if isinstance(output, tuple | list) else 0
