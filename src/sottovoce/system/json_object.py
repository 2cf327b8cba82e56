"""Reads a JSON object from a file."""

import json
from pathlib import Path
from typing import Any


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object. Raises `OSError`, and `ValueError` for anything else, with the reason in a few words.

    The reason does not name the file, as callers do.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise type(exc)(f"cannot be read ({exc.strerror})") from exc
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as exc:
        raise ValueError(f"is not JSON ({exc})") from exc
    if not isinstance(content, dict):
        raise ValueError(f"holds {type(content).__name__}, wanted a JSON object")
    return content


def json_object_or_empty(file: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object; nothing is in it if it is missing or damaged."""
    try:
        return read_json_object(file)
    except (OSError, ValueError):
        return {}
