"""What the pages list is all that there is."""

import re
from pathlib import Path

import pytest

import sottovoce
from sottovoce.bench.plan import KNOWN
from sottovoce.cli.main import main
from sottovoce.data.containers import CONTAINER_SUFFIXES
from sottovoce.data.load import MANIFEST_NAMES, METADATA_NAMES
from sottovoce.data.manifest import JSON_SUFFIXES, TABLE_SUFFIXES
from sottovoce.data.rows import FIELD_NAMES
from sottovoce.evaluation.failures import FAILURES

ROOT = Path(__file__).parents[1]


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """The rows of all tables by their first cell."""
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return {first.strip("`"): rest for first, *rest in cells}


def test_every_setting_of_a_bench_is_documented() -> None:
    listed = rows(page("measuring"))
    assert set(KNOWN) - {"method"} <= listed.keys()
    assert "[method.NAME]" in listed


def test_every_kind_of_failure_is_documented() -> None:
    assert {name.replace("_", " ") for name in FAILURES} <= rows(page("measuring")).keys()


@pytest.mark.parametrize("field", ["audio", "text", "speaker", "id", "language"])
def test_every_name_of_a_field_is_documented_in_its_order(field: str) -> None:
    assert tuple(re.findall(r"`(\w+)`", rows(page("data"))[field][0])) == FIELD_NAMES[field]


def test_every_kind_of_manifest_is_documented() -> None:
    text = page("data")
    assert all(f"`{name}`" in text for name in (*MANIFEST_NAMES, *METADATA_NAMES, *JSON_SUFFIXES, *TABLE_SUFFIXES))
    named = re.search(r"videos included: ([\w, ]+?) and others", text)
    assert named is not None
    assert {f".{name}" for name in named[1].split(", ")} <= set(CONTAINER_SUFFIXES)


def test_every_public_name_is_in_the_reference() -> None:
    documented = set[str]()
    for block in page("reference").split("\n::: ")[1:]:
        place = block.partition("\n")[0]
        members = re.search(r"members: \[(.+?)\]", block)
        documented |= {place} if members is None else {f"{place}.{name}" for name in members[1].split(", ")}
    for name, module in sottovoce._PUBLIC.items():
        home = getattr(getattr(sottovoce, name), "__module__", f"sottovoce.{module}")
        places = {home, f"{home}.{name}", f"sottovoce.{module}", f"sottovoce.{module}.{name}"}
        assert places & documented, name


def test_start_and_navigation_lead_to_every_page() -> None:
    pages = {file.name for file in (ROOT / "docs").glob("*.md")}
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("nav:")[1].split("markdown_extensions:")[0]
    assert set(re.findall(r"(\w+\.md)", navigation)) == pages
    assert set(re.findall(r"\]\((\w+\.md)", page("index"))) == pages - {"index.md"}


@pytest.mark.parametrize(
    "term",
    [
        "WER", "capped WER", "KL", "loop", "fold", "held-out", "look", "certificate", "ledger", "strength", "reliability score",
        "calibration gain", "plan", "schedule", "unit", "tie group", "target", "backend", "runtime", "export", "joined", "act order",
        "group size", "float scale bits", "original", "reference text", "confidence", "part",
    ],
)  # fmt: skip
def test_the_glossary_explains(term: str) -> None:
    explained = {name: rest for first, rest in rows(page("glossary")).items() for name in first.split(", ")}
    assert len(" ".join(explained[term])) > 20


def test_the_readme_is_short_and_lists_every_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 200
    listed = " ".join(line.split(" | ")[0] for line in readme.splitlines() if line.startswith("| `sottovoce "))
    assert set(main.commands) <= set(re.findall(r"[a-z]+", listed))
    assert "docs/glossary.md" in readme
