"""The ledger of looks: which speech was used to measure which settings, so that a second look at the same speech is counted.

A bound holds for one setting that was fixed before its speech was seen. Whoever tries ten settings on one speech and keeps the best has
ten chances to be lucky. One JSON object per line, `{"setting": "...", "recordings": ["...", ...]}`, both hashes; lines are only added.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sottovoce.errors import DataError, OutputError
from sottovoce.system.json_lines import append_lines, json_line
from sottovoce.system.text_files import read_lines

VARIABLE = "SOTTOVOCE_LEDGER"


def default_ledger() -> Path:
    """Return `$SOTTOVOCE_LEDGER`, else `sottovoce/looks.jsonl` in `$XDG_STATE_HOME`, else in `~/.local/state`; it need not exist yet."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser().absolute() / "sottovoce" / "looks.jsonl"


def setting_hash(setting: Mapping[str, Any]) -> str:
    """Return 32 hex digits that stand for all that was decided before the speech was seen."""
    return hashlib.sha256(json.dumps(dict(setting), sort_keys=True).encode()).hexdigest()[:32]


def earlier_looks(ledger: Path, setting: str, recordings: Sequence[str]) -> int:
    """Count the other settings that were measured on any of `recordings`. Raises `DataError` if the ledger cannot be read."""
    if not ledger.exists():
        return 0
    own, others = set(recordings), set[str]()
    try:
        for number, line in enumerate(read_lines(ledger), start=1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row["setting"], str) or not isinstance(row["recordings"], list):
                raise ValueError(f"line {number} is no look")
            if own.intersection(row["recordings"]):
                others.add(row["setting"])
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as exc:
        raise DataError(
            f"{ledger}: cannot be read as the ledger of looks ({exc}), so earlier looks at this speech are not known; repair it, or "
            "start another one with --ledger"
        ) from exc
    return len(others - {setting})


def add_look(ledger: Path, setting: str, recordings: Sequence[str]) -> None:
    """Write down that `recordings` are measured with `setting`, on the disk before anything is seen. Raises `OutputError`."""
    look = {"setting": setting, "recordings": sorted(recordings)}
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        known = ledger.read_text(encoding="utf-8") if ledger.exists() else ""
        if json_line(look) in known:
            return
        if known and not known.endswith("\n"):  # where an editor left it out
            with ledger.open("a", encoding="utf-8") as file:
                file.write("\n")
        append_lines(ledger, [look])
    except (OSError, UnicodeDecodeError) as exc:
        raise OutputError(f"{ledger}: looks at speech cannot be written down ({exc}); give another file with --ledger") from exc
