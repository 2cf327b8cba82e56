"""Tell the user what happened on the way and is no error, through the logger `sottovoce` of Python's logging."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger("sottovoce")


def notice(text: str) -> None:
    """Say `text` to whoever listens to the logger `sottovoce`; if nobody does, Python writes it to standard error."""
    LOGGER.warning("note: %s", text)


class _StandardError(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr)  # noqa: T201 - sys.stderr as it is now, a progress bar may stand in for it


@contextmanager
def notices_on_standard_error() -> Iterator[None]:
    """Write notices to standard error, whatever else listens: for the command."""
    handler = _StandardError()
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
