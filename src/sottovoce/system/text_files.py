"""Read text files as other programs write them: with or without a byte order mark, lines ended by any of the three conventions."""

import codecs
from pathlib import Path

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # what Windows PowerShell and spreadsheets write


def read_text(path: Path) -> str:
    """Read a file as UTF-8, or as UTF-16 if its byte order mark says so. Raises `OSError` and `UnicodeDecodeError`."""
    content = path.read_bytes()
    return content.decode("utf-16" if content.startswith(UTF16_MARKS) else "utf-8-sig")


def split_lines(text: str) -> list[str]:
    r"""Split at \n, \r\n and \r only.

    `str.splitlines` also splits at characters that may stand inside of a JSON text (U+2028, U+2029, U+0085, \x0b, \x0c, \x1c to \x1e).
    A byte order mark at the start of a line (files that were joined) is taken off.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removeprefix("\ufeff") for line in lines]


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file, without their ends. Raises `OSError` and `UnicodeDecodeError`."""
    return split_lines(read_text(path))
