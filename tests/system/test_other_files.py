"""Files of others in a folder."""

from pathlib import Path

from sottovoce.system.other_files import other_files


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_of_others_are_found_in_every_depth(tmp_path: Path) -> None:
    make(tmp_path, "config.json", "onnx/encoder.onnx", "onnx/notes.md", "a/b/c.txt", ".hidden", ".config.json.swp")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "empty").mkdir()
    found = other_files(tmp_path, {"config.json", "onnx/encoder.onnx"})
    assert found == [".config.json.swp", ".hidden", "a/b/c.txt", "link", "onnx/notes.md"]


def test_what_the_hub_and_stopped_runs_leave_is_of_nobody(tmp_path: Path) -> None:
    make(tmp_path, "config.json", ".config.json.ab_12345", ".gitattributes", ".cache/huggingface/download/config.json.metadata")
    assert other_files(tmp_path, {"config.json"}) == []
    make(tmp_path, ".cache/mine", ".gitattributes.mine", ".notes.ab_12345")
    assert other_files(tmp_path, {"config.json"}) == [".cache/mine", ".gitattributes.mine", ".notes.ab_12345"]
