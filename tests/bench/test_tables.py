"""What README and docs say was measured is what the committed results say."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tables

from sottovoce.bench import as_csv, as_markdown, plan_from, read_results, summarize

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
BENCHES = sorted(file.parent.name for file in RESULTS.glob("*/bench.json"))


def run(monkeypatch: pytest.MonkeyPatch, pages: list[Path], *arguments: str) -> int:
    monkeypatch.setattr(tables, "PAGES", pages or tables.PAGES)
    monkeypatch.setattr(sys, "argv", ["tables.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        tables.main()
    return int(ended.value.code or 0)


def test_the_pages_tables_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, [], "--check") == 0


def test_a_stale_figure_is_found_and_mended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = (ROOT / "docs/results.md").read_text()
    page = tmp_path / "results.md"
    page.write_text(results.replace("| float16 | 75.5 MB |", "| float16 | 75.4 MB |"))
    assert page.read_text() != results
    assert run(monkeypatch, [page], "--check") == 1
    assert page.read_text() != results
    assert run(monkeypatch, [page]) == 0
    assert page.read_text() == results


@pytest.mark.parametrize("model", ["tiny.en", "base"])
def test_a_size_is_that_of_the_numbers_in_the_title(model: str) -> None:
    """Four bytes a weight where a row says float32 and names no narrower file."""
    systems = json.loads((RESULTS / f"runtimes/{model}.json").read_text())["systems"]
    weights = systems["float16, transcribe.cpp"]["bytes"] / 2
    rows = [line.strip("| ").split(" | ") for line in tables.runtimes(model).splitlines()[2:]]
    assert any("float32" in title for title, *_ in rows)
    for title, size, *_ in rows:
        if "float32" in title and "float16 file" not in title:
            assert float(size) * 1e6 > 3.5 * weights, title


@pytest.mark.parametrize("name", BENCHES)
def test_the_tables_of_a_bench_follow_from_its_utterances(name: str) -> None:
    rows = summarize(read_results(RESULTS / name).evaluations)
    assert as_csv(rows) == (RESULTS / name / "results.csv").read_text()
    assert as_markdown(rows) == (RESULTS / name / "results.md").read_text()


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_names_the_recipes_that_remake_it(name: str) -> None:
    """The recipe files as they are now: whoever renames a setting in a recipe renames it in `bench.json` too."""
    recipes = [tomllib.loads(file.read_text()) for file in sorted((ROOT / "benchmarks/recipes").glob("*.toml"))]
    manifest = read_results(RESULTS / name).manifest
    assert manifest.recipes
    for recipe in manifest.recipes:
        assert recipe in recipes
        assert set(plan_from(recipe).data) <= manifest.recordings.keys()
    assert {record.model for record in read_results(RESULTS / name).evaluations} == manifest.weights.keys()


def test_results_are_small_and_named() -> None:
    listed = subprocess.run(["git", "ls-files", "benchmarks/results"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    files = [ROOT / name for name in listed] or [file for file in RESULTS.rglob("*") if file.is_file()]  # a source archive has no git
    assert sum(file.stat().st_size for file in files if file.is_file()) < 3_000_000
    described = re.findall(r"^\| `([\w./*-]+)` \|", (RESULTS / "README.md").read_text(), flags=re.M)
    for file in files:
        path = file.relative_to(RESULTS)
        assert path.name == "README.md" or any(path.match(name) or path.parts[0] == name for name in described), path


@pytest.mark.parametrize("script", sorted(file.name for file in (ROOT / "benchmarks").glob("*.py")))
def test_a_benchmark_explains_itself(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")
    assert ended.value.code == 0
    assert f"python benchmarks/{script}" in capsys.readouterr().out
