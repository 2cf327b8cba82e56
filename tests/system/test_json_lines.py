"""Files of JSON lines that are added to, and torn anywhere."""

import json
from pathlib import Path

from sottovoce.system.json_lines import append_lines, drop_torn_line, whole_lines

ROWS = [["a", [1, 2]], {"text": "grün\u2028\n", "lone": "\udc80"}, [None, 0.5]]


def test_what_was_added_is_read(tmp_path: Path) -> None:
    assert whole_lines(tmp_path / "x") == []
    append_lines(tmp_path / "x", ROWS[:1])
    append_lines(tmp_path / "x", ROWS[1:])
    assert whole_lines(tmp_path / "x") == ROWS


def test_a_torn_file_gives_its_whole_lines(tmp_path: Path) -> None:
    append_lines(tmp_path / "x", ROWS)
    content = (tmp_path / "x").read_bytes()
    for end in range(len(content)):
        (tmp_path / "y").write_bytes(content[:end])
        found = whole_lines(tmp_path / "y")
        assert found == ROWS[: len(found)]
        assert len(found) >= content[:end].count(b"\n")
    assert json.loads(content.splitlines()[0]) == ROWS[0]


def test_what_is_added_after_a_torn_line_is_read(tmp_path: Path) -> None:
    append_lines(tmp_path / "x", ROWS)
    content = (tmp_path / "x").read_bytes()
    for end in range(len(content)):
        (tmp_path / "y").write_bytes(content[:end])
        drop_torn_line(tmp_path / "y")
        append_lines(tmp_path / "y", ["more"])
        assert whole_lines(tmp_path / "y") == [*ROWS[: content[:end].count(b"\n")], "more"]
