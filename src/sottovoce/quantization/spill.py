"""Live activations of paused forward passes in a file, so that memory holds those of one batch.

A paused pass keeps its tensors in the local variables of its frames. `park` finds them there, writes them to the file and empties them
in place; `bring_back` fills them again before the pass goes on. Tensors that several passes share are written once. What is read is what
was written, bit for bit.
"""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from sottovoce.errors import OutputError
from sottovoce.system.memory import release_freed_memory

LEAST_BYTES = 64 << 10  # smaller tensors stay
DEPTH = 4  # of tuples, lists and dictionaries in a local variable


class Spill:
    """A file of tensors in `folder`, without a name, so that it is gone when the process ends. `stays`: networks whose weights stay.

    Raises `OutputError` where the disk is full.
    """

    def __init__(self, folder: Path | None, stays: Sequence[nn.Module]) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)
        self._folder = folder or Path(tempfile.gettempdir())
        self._stays = {id(buffer): buffer for network in stays for buffer in network.buffers()}
        self._free = dict[int, list[int]]()  # places of freed tensors, by bytes
        self._end = 0
        self._parked = dict[int, tuple[Tensor, int, tuple[int, ...], tuple[int, ...]]]()  # with place, shape and strides, by identity
        self.most_bytes = 0

    def park(self, frames: Sequence[FrameType | None]) -> None:
        """Write what these paused frames and their callers hold, and empty it."""
        for tensor in held_tensors(frames):
            if id(tensor) in self._parked or id(tensor) in self._stays or isinstance(tensor, nn.Parameter):
                continue
            size = tensor.numel() * tensor.element_size()
            if size < LEAST_BYTES or tensor.device.type != "cpu" or not _is_dense(tensor):
                continue
            place = self._write(tensor, size)
            self._parked[id(tensor)] = (tensor, place, tuple(tensor.shape), tensor.stride())
            tensor.data = tensor.new_empty(0)

    def bring_back(self, tensors: Sequence[Tensor]) -> None:
        """Fill tensors again, those of them that are parked."""
        for tensor in tensors:
            if (parked := self._parked.pop(id(tensor), None)) is not None:
                _, place, shape, strides = parked
                tensor.data = self._read(tensor.dtype, place, shape, strides)
                self._free.setdefault(tensor.numel() * tensor.element_size(), []).append(place)

    @contextmanager
    def loaded(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Fill tensors for the time of a `with` block; they stay parked."""
        here = {id(tensor): tensor for tensor in tensors if id(tensor) in self._parked}
        for key, tensor in here.items():
            _, place, shape, strides = self._parked[key]
            tensor.data = self._read(tensor.dtype, place, shape, strides)
        try:
            yield
        finally:
            for tensor in here.values():
                tensor.data = tensor.new_empty(0)
            release_freed_memory()

    def forget(self) -> None:
        """Close the file."""
        self._parked.clear()
        self._file.close()

    def _write(self, tensor: Tensor, size: int) -> int:
        if free := self._free.get(size):
            place = free.pop()
        else:
            place, self._end = self._end, self._end + size
            self.most_bytes = self._end
        flat = torch.as_strided(tensor, (tensor.numel(),), (1,))  # as it lies in memory
        try:
            self._file.seek(place)
            self._file.write(flat.contiguous().view(torch.uint8).numpy().data)
        except OSError as exc:
            raise OutputError(
                f"{self._folder}: activations cannot be written ({exc}); free {size >> 20} MiB or more, or give a larger --max-memory"
            ) from exc
        return place

    def _read(self, dtype: torch.dtype, place: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        found = torch.empty_strided(shape, strides, dtype=dtype)
        flat = torch.as_strided(found, (found.numel(),), (1,)).view(torch.uint8).numpy()
        self._file.seek(place)
        if self._file.readinto(flat.data) != len(flat):
            raise OutputError(f"{self._folder}: activations cannot be read back; look at the disk, and start again with --resume")
        return found


def held_tensors(frames: Sequence[FrameType | None]) -> list[Tensor]:
    """Return the tensors that local variables of frames and of their callers hold, each once."""
    found = dict[int, Tensor]()
    for start in frames:
        frame = start
        while frame is not None:
            for value in list(frame.f_locals.values()):
                _collect(value, found, DEPTH)
            frame = frame.f_back
    return list(found.values())


def _collect(value: Any, found: dict[int, Tensor], depth: int) -> None:
    if isinstance(value, Tensor):
        found[id(value)] = value
    elif depth and isinstance(value, list | tuple | dict):
        inside: Collection[Any] = value.values() if isinstance(value, dict) else value
        for one in inside:
            _collect(one, found, depth - 1)


def _is_dense(tensor: Tensor) -> bool:
    """Whether each of its elements has one place, without gaps."""
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
