"""Processes that torchrun has started together."""

import os


def local_rank() -> int:
    """Return the number of this process on its machine; 0 if it was started alone."""
    return int(os.environ.get("LOCAL_RANK", "0"))
