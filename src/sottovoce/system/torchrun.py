"""What torchrun tells the processes that it has started together. Imports nothing heavy."""

import os

from sottovoce.errors import MachineError


def local_rank() -> int:
    """Return the number of this process on its machine; 0 if it was started alone."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    """Return the number of this process among all; 0 if it was started alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes torchrun has started; 1 if this one was started alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_leading() -> bool:
    """Return whether this process is the first, which writes and shows."""
    return rank() == 0


def refuse_ranks(what: str) -> None:
    """Raise `MachineError` if this is one of several processes; `what`: is done by one."""
    if (count := world_size()) > 1:
        raise MachineError(f"{what} runs in one process, and torchrun has started {count}; start it without torchrun")
