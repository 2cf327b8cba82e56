"""Folders, manifests and corpora as data sets."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce.data.load import load_data
from sottovoce.errors import DataError


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_manifest_folder_and_librispeech_tree(tmp_path: Path) -> None:
    folder = tmp_path / "84" / "121123"
    folder.mkdir(parents=True)
    for i in range(2):
        soundfile.write(folder / f"84-121123-000{i}.flac", tone(0.5), 16000)
    plain = load_data(tmp_path)
    assert [u.id for u in plain] == ["84/121123/84-121123-0000", "84/121123/84-121123-0001"]
    (folder / "84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT IN LESS THAN FIVE MINUTES\n")
    tree = load_data(tmp_path)
    assert [(u.id, u.text, u.speaker) for u in tree][0] == ("84-121123-0000", "GO DO YOU HEAR", "84")
    (tmp_path / "manifest.jsonl").write_text(
        '{"audio": "84/121123/84-121123-0000.flac", "text": "go", "speaker": 84}\n\n{"audio": "84/121123/84-121123-0001.flac"}\n'
    )
    listed = load_data(tmp_path)
    assert [(u.text, u.speaker) for u in listed] == [("go", "84"), (None, None)]
    assert len(listed.utterances[0].samples()) == 8000


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: is not JSON"),
        ("[]", 'line 2: wanted an object with "audio"'),
        ('{"text": "x"}', 'line 2: wanted an object with "audio"'),
        ('{"audio": "b.wav", "text": 5}', "line 2: 'text' must be text"),
        ('{"audio": "a.wav"}', "'a' occurs twice"),
    ],
)
def test_bad_manifest_lines(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav"}\n' + line + "\n")
    with pytest.raises(DataError, match=words):
        load_data(tmp_path / "m.jsonl")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_data(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no utterances"):
        load_data(tmp_path)
    (tmp_path / "x.wav").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        load_data(tmp_path / "x.wav")


def test_draws_depend_on_the_seed_alone(speech_folder: Path) -> None:
    data = load_data(speech_folder)
    ids = [[u.id for u in data.sample(5, seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert len(data.sample(None, 0)) == len(data) == 12


def test_json_of_a_manifest_line_keeps_unicode(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "ä.wav", tone(0.5), 16000)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"audio": "ä.wav", "text": "schön"}, ensure_ascii=False), encoding="utf-8")
    assert next(iter(load_data(tmp_path))).text == "schön"
