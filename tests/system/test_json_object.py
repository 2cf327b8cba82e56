"""A file of one JSON object is read, and anything else is refused in a few words."""

from pathlib import Path

import pytest

from sottovoce.system.json_object import json_object_or_empty, read_json_object


def test_an_object_is_read(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"name": "ä"}', encoding="utf-8")
    assert read_json_object(file) == {"name": "ä"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "holds list, wanted a JSON object"),
        (b"[" * 100_000, "is nested too deeply"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "settings.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{message}"):
        read_json_object(file)


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^cannot be read \(No such file or directory\)$"):
        read_json_object(tmp_path / "settings.json")


@pytest.mark.parametrize(("content", "found"), [(b'{"a": 1}', {"a": 1}), (b"{", {}), (b"[]", {}), (None, {})])
def test_a_missing_or_damaged_file_can_count_as_empty(tmp_path: Path, content: bytes | None, found: dict[str, int]) -> None:
    file = tmp_path / "settings.json"
    if content is not None:
        file.write_bytes(content)
    assert json_object_or_empty(file) == found
