"""A file of one JSON object is read, and anything else is refused in a few words."""

from pathlib import Path

import pytest

from sottovoce.system.json_object import read_json_object


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
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "settings.json")
