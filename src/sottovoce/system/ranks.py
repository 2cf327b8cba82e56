"""Processes that torchrun has started together: who they are, and how they share numbers.

Everything goes to rank 0 and is added up there in the order of ranks, so that a sum does not depend on when who arrives. CPU tensors
travel by gloo, CUDA tensors by nccl.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sottovoce.errors import AnotherRankError, MachineError
from sottovoce.system.torchrun import rank, world_size

PATIENCE = timedelta(days=1)  # a rank may wait for another's solve; one that has died is noticed at once, by its closed connection


class Ranks:
    """One of `size` processes that do a calibration together; the first, `rank` 0, leads. By itself: a process that was started alone."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """Whether this process writes, shows and solves."""
        return self.rank == 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Add the tensors of all ranks, in the order of ranks, to those of rank 0; the others' stay as they are. Raises `MachineError`."""
        if self.size == 1:
            return
        with _together():
            for tensor in tensors:
                if self.rank:
                    dist.send(tensor.contiguous(), 0)
                    continue
                arrived = torch.empty_like(tensor, memory_format=torch.contiguous_format)
                for other in range(1, self.size):
                    dist.recv(arrived, other)
                    tensor += arrived

    def gather_rows(self, rows: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return at rank 0 the tensors `[n, width]` of all ranks by number, in order; elsewhere those given. Raises `MachineError`."""
        if self.size == 1:
            return dict(sorted(rows.items()))
        counts = self.exchange([[number, len(tensor)] for number, tensor in sorted(rows.items())])
        whole = torch.cat([tensor for _, tensor in sorted(rows.items())])
        found = dict(rows)
        with _together():
            if self.rank:
                dist.send(whole, 0)
                return dict(sorted(found.items()))
            for other in range(1, self.size):
                arrived = whole.new_empty(sum(count for _, count in counts[other]), whole.shape[1])
                dist.recv(arrived, other)
                pieces = torch.split(arrived, [count for _, count in counts[other]])
                found |= {number: piece for (number, _), piece in zip(counts[other], pieces, strict=True)}
        return dict(sorted(found.items()))

    def broadcast(self, data: bytes | None) -> bytes:
        """Return the bytes that rank 0 gives; the others give None. Raises `MachineError`."""
        if self.size == 1:
            return data or b""
        with _together():
            length = torch.tensor([len(data or b"")])
            dist.broadcast(length, 0)
            content = torch.empty(int(length), dtype=torch.uint8) if data is None else torch.frombuffer(bytearray(data), dtype=torch.uint8)
            if int(length):
                dist.broadcast(content, 0)
        return content.numpy().tobytes()

    def exchange(self, value: Any) -> list[Any]:
        """Return the plain data that each rank gives, by rank. Raises `MachineError`."""
        if self.size == 1:
            return [value]
        data = json.dumps(value).encode()
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _together():
            dist.all_gather(lengths, torch.tensor([len(data)]))
            longest = max(int(length) for length in lengths)
            padded = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8)
            found = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(found, padded)
        return [json.loads(content.numpy().tobytes()) for content in found]

    def compare(self, inputs: dict[str, Any]) -> None:
        """Raise `MachineError` on every rank, by name of what differs, unless all ranks give the same plain data."""
        first, *others = self.exchange(json.loads(json.dumps(inputs)))
        for number, other in enumerate(others, 1):
            if different := sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key)):
                text = (
                    f"process {number} of {self.size} differs from process 0 in {', '.join(different).replace('_', ' ')}; "
                    "give all of them the same files, options and versions"
                )
                raise MachineError(text) if self.leads else AnotherRankError(text)


ALONE = Ranks()


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun has started with this one, for the time of a `with` block; `ALONE` if there are none."""
    if (size := world_size()) == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks(rank(), size)
    except AnotherRankError:
        raise
    except BaseException as exc:
        if not _is_first_to_end() and isinstance(exc, MachineError):
            raise AnotherRankError(str(exc)) from exc
        raise
    finally:
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()


def _is_first_to_end() -> bool:
    """Whether no other rank has ended with an error before: that one tells why."""
    try:
        return dist.distributed_c10d._get_default_store().add("sottovoce/ended", 1) == 1
    except (RuntimeError, dist.DistError):
        return True  # the process that kept the count is gone


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, dist.DistError) as exc:
        raise MachineError(
            "another of the processes has ended, so this one ends too; finished layers are kept, and the same command with --resume "
            "continues"
        ) from exc
