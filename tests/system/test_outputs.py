"""What a file that is to be written may replace, told before any work."""

from pathlib import Path

import pytest

from sottovoce.errors import OutputError
from sottovoce.system.outputs import FileKind, check_outputs

NOTE = FileKind(title="a note", holds=lambda path: path.read_bytes().startswith(b"note"))


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "old").write_text("note of yesterday")
    (tmp_path / "empty").touch()
    (tmp_path / "sound.wav").write_bytes(b"RIFF")
    (tmp_path / "input").write_text("note to read")
    (tmp_path / "link").symlink_to(tmp_path / "input")
    return tmp_path


def check(room: Path, *names: str) -> None:
    check_outputs([(room / name, NOTE) for name in names], reserved=[room / "input"], folders=[room / "model"])


@pytest.mark.parametrize("name", ["new", "old", "empty", "model.note", "absent/sub/new"])
def test_new_files_and_those_of_its_kind_are_written(room: Path, name: str) -> None:
    check(room, name)
    check_outputs([(None, NOTE), (None, NOTE)])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["sound.wav"], r"sound\.wav: is there already and is not a note, so it is not replaced"),
        (["input"], "input: the same command reads or writes this file already"),
        (["link"], "link: the same command reads or writes this file already"),
        (["new", "model/../new"], "the same command reads or writes this file already"),
        (["model/new"], "lies in .*model, the folder of a model"),
        (["model/sub/new"], "lies in .*model, the folder of a model"),
        (["old/new"], "old is a file, and a folder is wanted there"),
        (["."], "is a folder, and a note is to be written"),
        (["x" * 300], "cannot be written"),
        (["a\0b"], "cannot be written"),
    ],
)
def test_anything_else_is_refused(room: Path, names: list[str], said: str) -> None:
    with pytest.raises(OutputError, match=said) as caught:
        check(room, *names)
    assert "\n" not in str(caught.value)


def test_a_device_is_no_file() -> None:
    with pytest.raises(OutputError, match="/dev/null: is there already and is not a note"):
        check_outputs([("/dev/null", NOTE)])
