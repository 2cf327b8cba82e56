"""A plan as a JSON file, to be read, edited and given in place of a recipe's formats."""

import json
from pathlib import Path

from sottovoce.errors import DataError, OutputError, RecipeError
from sottovoce.quantization.plan import Plan
from sottovoce.system.atomic_files import written_whole
from sottovoce.system.outputs import FileKind, read_by
from sottovoce.system.plain_data import from_plain, to_plain


def write_plan(file: str | Path, plan: Plan) -> None:
    """Write a plan, whole or not at all. Raises `OutputError`."""
    try:
        with written_whole(Path(file).expanduser().absolute()) as handle:
            json.dump(to_plain(plan), handle, indent=2)
            handle.write("\n")
    except OSError as exc:
        raise OutputError(f"{file}: the plan cannot be written ({exc}); give another name") from exc


def read_plan(file: str | Path) -> Plan:
    """Read a plan. Raises `RecipeError` that names what does not fit."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise RecipeError(f"{file}: no such file; write a plan with `sottovoce quantize MODEL OUT --dry-run --json`")
    try:
        return from_plain(Plan, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, DataError) as exc:
        raise RecipeError(f"{file}: is not a plan ({exc}); write one with `sottovoce quantize MODEL OUT --dry-run --json`") from exc


PLAN = FileKind(title="a plan", holds=read_by(read_plan))
