"""A script without `if __name__ == "__main__":` is not run again by the processes it starts."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

SCRIPT = """
from concurrent.futures import ProcessPoolExecutor
from sottovoce.system.spawn import spawn_context
print("started")
with ProcessPoolExecutor(1, spawn_context(2.0)) as pool:
    print(pool.submit(pow, 2.0, 3).result())
"""
OWN_CLASS = """
from concurrent.futures import ProcessPoolExecutor
from sottovoce.system.spawn import spawn_context
class Own:
    pass
if __name__ == "__main__":
    with ProcessPoolExecutor(1, spawn_context(Own())) as pool:
        print(type(pool.submit(list, [Own()]).result()[0]) is Own)
"""


def run_script(folder: Path, text: str) -> str:
    script = folder / "script.py"
    script.write_text(dedent(text))
    return subprocess.run([sys.executable, script], check=True, capture_output=True, text=True, timeout=120).stdout  # noqa: S603


def test_the_script_runs_once(tmp_path: Path) -> None:
    assert run_script(tmp_path, SCRIPT).split() == ["started", "8.0"]


def test_what_the_script_defines_is_known_where_it_is_needed(tmp_path: Path) -> None:
    assert run_script(tmp_path, OWN_CLASS).strip() == "True"
