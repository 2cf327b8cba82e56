"""Processes of their own that do not run the caller's script a second time."""

import sys
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

MAIN = "__main__"


def spawn_context(arguments: object) -> SpawnContext:
    """Return the context for a pool whose processes get `arguments`, as `multiprocessing.get_context("spawn")` makes it.

    A spawned process imports the script that started Python, and so runs all of it again where it has no `if __name__ == "__main__":`. Here
    it does not, unless something in `arguments` was defined in that script.
    """
    return SpawnContext() if MAIN.encode() in bytes(ForkingPickler.dumps(arguments)) else _WithoutScript()


class _Process(SpawnProcess):
    """Python asks what the main module is at the moment when the process starts."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802 - Python's name
        script, sys.modules[MAIN] = sys.modules[MAIN], ModuleType(MAIN)
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules[MAIN] = script


class _WithoutScript(SpawnContext):
    Process = _Process
