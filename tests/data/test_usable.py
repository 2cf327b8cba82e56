"""A calibration folder with bad files: all of them are named, the others are used."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce import api
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.data.load import load_data
from sottovoce.data.usable import read_usable
from sottovoce.errors import CalibrationError
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.pipeline import calibration_record
from tests.cli.test_cli import run
from tests.conftest import make_tiny


def speech(path: Path, seed: int) -> None:
    samples = np.convolve(np.random.default_rng(seed).standard_normal(16000), np.hanning(9 + seed), mode="same")
    soundfile.write(path, 0.3 * samples / np.abs(samples).max(), 16000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight good recordings, four bad ones, and what macOS and other programs leave behind."""
    folder = tmp_path / "speech"
    (folder / ".trash").mkdir(parents=True)
    for i in range(8):
        speech(folder / f"u{i}.wav", i)
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "short.wav", np.ones(100), 16000)
    (folder / "text.wav").write_text("no sound")
    (folder / "empty.flac").write_bytes(b"")
    (folder / "._u0.wav").write_bytes(b"\x00\x05\x16\x07")
    (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    speech(folder / ".trash" / "gone.wav", 9)
    return folder


BAD = {"silent": "is silent", "short": "is too short", "text": "cannot be read as audio", "empty": "is empty (0 bytes)"}


def test_all_bad_recordings_are_named_and_the_others_used(folder: Path) -> None:
    found = prepare_speech(make_tiny(), load_data(folder))
    assert set(found.ids) == {f"u{i}" for i in range(8)}
    assert found.left_out.keys() == BAD.keys()
    assert all(words in found.left_out[name] and f"{name}." in found.left_out[name] for name, words in BAD.items())


def test_the_command_names_them_and_keeps_them_in_the_manifest(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    code, printed, shown = run("quantize", model_folder, tmp_path / "out", "--calibration", folder, "--method", "gptq")
    assert code == 0, shown
    flat = " ".join(printed.split())
    assert all(f"left out of the calibration: {folder}/{name}." in flat for name in BAD)
    assert "._u0" not in printed + shown
    calibration = read_manifest(tmp_path / "out").calibration
    assert calibration is not None
    assert (len(calibration.utterances), calibration.left_out.keys()) == (8, BAD.keys())
    assert calibration.amount.startswith("8 recordings, ")


def test_pieces_are_not_counted_as_recordings(tmp_path: Path) -> None:
    model, recordings = make_tiny(), tmp_path / "recordings"
    recordings.mkdir()
    for name, seconds in (("long", 2.5 * model.max_duration_s), ("short", 1.0), ("other", 1.0)):
        noise = 0.1 * np.random.default_rng(len(name)).standard_normal(round(seconds * 16000))
        soundfile.write(recordings / f"{name}.wav", noise, 16000)
    data = load_data(recordings)
    taught = prepare_speech(model, data)
    assert taught.cut == ("long",)
    assert calibration_record(taught, 0).amount.startswith(f"3 recordings in {len(taught.ids)} pieces, ")
    alone = replace(data, utterances=data.utterances[1:2])
    assert prepare_speech(model, alone, least=1).ids == (alone.utterances[0].id,)
    with pytest.raises(CalibrationError, match="1 usable recording; at least 2 are needed"):
        prepare_speech(model, alone)


def test_too_few_that_remain_are_refused_with_all_reasons(folder: Path, tmp_path: Path) -> None:
    for i in range(1, 8):
        (folder / f"u{i}.wav").unlink()
    with pytest.raises(CalibrationError, match=r"speech: 1 usable recording; at least 2 are needed, better a hundred") as caught:
        api.quantize(make_tiny(), tmp_path / "out", calibration=folder)
    assert all(f"{name}." in str(caught.value) for name in BAD)
    assert not (tmp_path / "out").exists()


def test_files_that_a_manifest_lists_and_nobody_has(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.jsonl").write_text("".join(f'{{"audio": "u{i}.wav"}}\n' for i in (0, 1, 2, 98, 99)))
    result = api.quantize(make_tiny(), tmp_path / "out", calibration=folder)
    assert result.calibration is not None
    assert result.calibration.left_out == {f"u{i}": f"{folder}/u{i}.wav: no such file" for i in (98, 99)}


def test_silence_calibrates_nothing_even_where_it_is_meant(folder: Path) -> None:
    data = load_data(folder)
    silent = Utterance(id="silent", audio=folder / "silent.wav", text="")
    assert len(silent.samples()) == 16000
    usable = read_usable(DataSet("x", (silent, data.utterances[-1])))
    assert [u.id for u in usable.utterances] == ["u7"]
    assert np.array_equal(usable.samples[0], data.utterances[-1].samples())
    assert "is silent" in usable.left_out["silent"]
