"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from sottovoce.system.atomic_files import written_whole


def test_a_link_stays_a_link_and_its_end_is_written(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "7.json").write_text("old")
    (tmp_path / "latest.json").symlink_to("runs/7.json")
    with written_whole(tmp_path / "latest.json") as file:
        file.write("new")
    assert (tmp_path / "latest.json").is_symlink()
    assert (tmp_path / "runs" / "7.json").read_text() == "new"


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text("old")

    def fail() -> None:
        with written_whole(tmp_path / "kept.json") as file:
            file.write("half")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["kept.json"]
    assert (tmp_path / "kept.json").read_text() == "old"
