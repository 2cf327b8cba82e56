"""The ledger of looks at speech: what it counts, where it lies, and what is refused."""

from pathlib import Path

import pytest

from sottovoce.errors import DataError, OutputError
from sottovoce.evaluation.ledger import add_look, default_ledger, earlier_looks, setting_hash


def test_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a" / "looks.jsonl"
    add_look(file, "one", ["x", "y"])
    add_look(file, "one", ["y", "x"])
    add_look(file, "two", ["z"])
    assert [earlier_looks(file, "three", names) for names in (["x"], ["x", "z"], ["w"])] == [1, 2, 0]
    assert earlier_looks(file, "one", ["y"]) == 0
    with pytest.raises(OutputError, match="--ledger"):
        add_look(tmp_path, "one", ["x"])
    monkeypatch.delenv("SOTTOVOCE_LEDGER", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_ledger() == tmp_path / "sottovoce" / "looks.jsonl"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_ledger() == tmp_path / ".local" / "state" / "sottovoce" / "looks.jsonl"


@pytest.mark.parametrize("line", ["{}", '{"setting": 1, "recordings": []}', '{"setting": "a", "recordings": "x"}', "[]", "no JSON"])
def test_a_ledger_that_is_none_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "looks.jsonl"
    file.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match="ledger of looks"):
        earlier_looks(file, "one", ["x"])


def test_a_setting_is_the_same_in_any_order() -> None:
    assert setting_hash({"a": 1, "b": 2}) == setting_hash({"b": 2, "a": 1}) != setting_hash({"a": 1, "b": 3})
    assert len(setting_hash({})) == 32


def test_a_last_line_without_an_end_stays_a_look(tmp_path: Path) -> None:
    """As an editor may leave it."""
    ledger = tmp_path / "looks.jsonl"
    ledger.write_text('{"setting": "a", "recordings": ["r1"]}')
    assert earlier_looks(ledger, "c", ["r1"]) == 1
    add_look(ledger, "b", ["r1"])
    assert earlier_looks(ledger, "c", ["r1"]) == 2
