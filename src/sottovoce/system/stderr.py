"""What native libraries say on standard error, kept from the terminal."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """What is written to file descriptor 2 meanwhile is in the list afterwards, as one text."""
    said: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield said
            finally:
                sys.stderr.flush()
                os.dup2(kept, 2)
                file.seek(0)
                said.append(file.read().decode(errors="replace"))
    finally:
        os.close(kept)
