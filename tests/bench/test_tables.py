"""What README and docs say was measured is what the committed results say."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/tables.py"


def run(monkeypatch: pytest.MonkeyPatch, pages: list[Path], *arguments: str) -> int:
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    monkeypatch.setattr(tables, "PAGES", pages or tables.PAGES)
    monkeypatch.setattr(sys, "argv", ["tables.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        tables.main()
    return int(ended.value.code or 0)


def test_the_pages_tables_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, [], "--check") == 0


def test_a_stale_figure_is_found_and_mended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    readme = (SCRIPT.parent.parent / "README.md").read_text()
    page = tmp_path / "README.md"
    page.write_text(readme.replace("| float16 | 75.5 MB |", "| float16 | 75.4 MB |"))
    assert page.read_text() != readme
    assert run(monkeypatch, [page], "--check") == 1
    assert page.read_text() != readme
    assert run(monkeypatch, [page]) == 0
    assert page.read_text() == readme
