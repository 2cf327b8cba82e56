"""The terminal: where tables go, the progress bar, and silence for the libraries."""

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from sottovoce.system.progress import Progress

MEGABYTE = 1e6
NONE = "-"  # in a table, where there was nothing to measure
PIPE_WIDTH = 160  # columns


def console(*, stderr: bool = False) -> Console:
    """Return a console for results, or for everything else; wide where nobody wraps lines: in files and pipes.

    Texts are shown as they are: names and transcripts may hold what rich would take for markup or an emoji.
    """
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PIPE_WIDTH, markup=False, emoji=False)


def quiet_libraries() -> None:
    """Keep the libraries' own notices and bars out of the terminal; errors are still raised."""
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # for the processes of a bench
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="transformers")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show a bar on standard error: what is being done, how far it is, and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console(stderr=True), transient=True) as bars:
        tasks = dict[str, TaskID]()  # each kind of work has one bar

        def report(kind: str, done: int, total: int, detail: str = "", /) -> None:
            text = f"{kind}: {detail}" if detail else kind
            if kind not in tasks:
                tasks[kind] = bars.add_task(text, total=total)
            bars.update(tasks[kind], completed=done, total=total, description=text)

        yield report


def megabytes(n_bytes: float) -> str:
    """Format a size."""
    return f"{n_bytes / MEGABYTE:.1f} MB"


def percent(rate: float) -> str:
    """Format a rate; a dash for NaN, where there was nothing to measure."""
    return NONE if math.isnan(rate) else f"{100 * rate:.2f} %"


def figure(value: float | None) -> str:
    """Format a diagnostic; nothing for what is not known."""
    return "" if value is None else f"{value:.3f}"
