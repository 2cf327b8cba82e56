"""Processes that begin with torch and this package loaded: tests that kill many of them would else spend their time importing."""

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "transformers.models.whisper.modeling_whisper", "sottovoce.api"])

# Where the tests run in the background, Ctrl-C is ignored, and their children would inherit that.
COMMAND = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("sottovoce", run_name="__main__")
"""


class Forked:
    """A script (without one, the command `sottovoce`) run by a process of its own; what it prints goes to files in `folder`."""

    def __init__(
        self, arguments: Sequence[object], folder: Path, script: str = COMMAND, environment: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "script.py"
        file.write_text(script, encoding="utf-8")
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        self._out.touch()
        words = [str(argument) for argument in arguments]
        self._process = SERVER.Process(target=_run, args=(str(file), words, str(self._out), str(self._err), dict(environment or {})))
        self._process.start()

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def wait_for_print(self, within_s: float = 120.0) -> None:
        """Return when the script has printed something or has ended."""
        deadline = time.monotonic() + within_s
        while not self._out.stat().st_size and self._process.is_alive():
            assert time.monotonic() < deadline, "nothing was printed"
            time.sleep(0.005)

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def finish(self, within_s: float = 120.0) -> tuple[int, str, str]:
        """Return exit code (minus the signal that ended it), what it printed, and its errors."""
        self._process.join(within_s)
        code = self._process.exitcode
        assert code is not None, "it does not end"
        return code, self._out.read_text(encoding="utf-8"), self._err.read_text(encoding="utf-8")


def _run(script: str, arguments: list[str], out: str, err: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for number, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    sys.stdout.flush()
