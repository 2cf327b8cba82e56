"""Many files, of which some are broken; and runs that were stopped on the way."""

import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from sottovoce import api
from sottovoce.cli.main import main
from sottovoce.data.audio import read_audio
from sottovoce.data.load import load_data
from sottovoce.errors import AudioError, DataError
from sottovoce.evaluation.recognizer import RecognitionBatch, TorchRecognizer
from sottovoce.evaluation.transcript_cache import TranscriptCache
from sottovoce.evaluation.transcripts import read_transcripts
from tests.conftest import make_tiny
from tests.forked import Forked


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def mixed(speech_folder: Path, tmp_path: Path) -> Path:
    """The shared recordings, and four that cannot be used."""
    folder = Path(shutil.copytree(speech_folder, tmp_path / "mixed"))
    (folder / "cut.wav").write_bytes((folder / "u1.wav").read_bytes()[:20])
    (folder / "text.wav").write_text("no sound")
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    rows = (folder / "manifest.jsonl").read_text().splitlines()
    broken = [json.dumps({"audio": f"{n}.wav", "text": "words"}) for n in ("cut", "text", "silent", "nan", "gone")]
    (folder / "manifest.jsonl").write_text("\n".join([*rows[:3], *broken, *rows[3:]]) + "\n")
    return folder


def test_the_good_ones_are_finished_and_the_bad_ones_named(model_folder: Path, mixed: Path, tmp_path: Path) -> None:
    saved = tmp_path / "hypotheses.jsonl"
    code, printed, shown = run("evaluate", model_folder, mixed, "--save", saved, "--json")
    assert code == 1
    assert json.loads(printed)["utterances"] == 12
    assert set(json.loads(printed)["unusable"]) == {"cut", "text", "silent", "nan", "gone"}
    assert "silent.wav: is silent" in shown
    assert "nan.wav: holds NaN" in shown
    assert "gone.wav: no such file" in shown
    assert "5 of 17 recordings could not be used" in shown
    assert [t.id for t in read_transcripts(saved)] == [f"u{i}" for i in range(12)]
    code, printed, shown = run("transcribe", model_folder, mixed, "--json")
    assert (code, len(json.loads(printed))) == (1, 12)
    assert "5 of 17" in shown


def test_after_a_repair_only_the_missing_ones_are_made(
    model_folder: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, counts = tmp_path / "hypotheses.jsonl", list[int]()
    original = TorchRecognizer.recognize

    def counted(self: TorchRecognizer, recordings: Sequence[np.ndarray], *rest: Any, **options: Any) -> RecognitionBatch:
        counts.append(len(recordings))
        return original(self, recordings, *rest, **options)

    monkeypatch.setattr(TorchRecognizer, "recognize", counted)
    run("transcribe", model_folder, mixed, "--save", saved)
    before = {t.id: t for t in read_transcripts(saved)}
    for name in ("cut", "text", "silent", "nan", "gone"):
        shutil.copy(mixed / "u5.wav", mixed / f"{name}.wav")
    shutil.copy(mixed / "u6.wav", mixed / "u2.wav")  # changed since
    assert run("transcribe", model_folder, mixed, "--save", saved)[0] == 0
    assert counts == [12, 6]
    after = {t.id: t for t in read_transcripts(saved)}
    assert len(after) == 17
    assert {name for name in before if after[name] != before[name]} <= {"u2"}
    assert not list(tmp_path.glob(".hypotheses*"))  # all is made: the cache is gone


def test_killed_on_the_way_nothing_is_made_twice(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(12 * 8):
        shutil.copy(speech_folder / f"u{i % 12}.wav", folder / f"r{i:03d}.wav")
    saved, cache = tmp_path / "hypotheses.jsonl", tmp_path / ".hypotheses.jsonl.unfinished"
    command, logs = ["transcribe", model_folder, folder, "--threads", "1", "--save"], tmp_path / "logs"
    process = Forked([*command, saved], logs)
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if cache.is_file() and cache.read_text().count("\n") > 1:
            break
        time.sleep(0.01)
    process.kill()
    if process.finish()[0] == -signal.SIGKILL:
        with cache.open("a") as file:
            file.write('["half a li')
        made = cache.read_text().count("\n") - 1
        assert made >= 32
        data = load_data(folder)
        known = TranscriptCache(saved, json.loads(cache.read_text().splitlines()[0])).known
        assert len(known) == made
        assert Forked([*command, saved], logs).finish()[0] == 0
        assert len(data) == len(read_transcripts(saved))
    whole = tmp_path / "whole.jsonl"
    assert Forked([*command, whole], logs).finish()[0] == 0
    assert saved.read_bytes() == whole.read_bytes()


def test_transcripts_of_another_model_are_not_taken(model_folder: Path, mixed: Path, tmp_path: Path) -> None:
    saved = tmp_path / "hypotheses.jsonl"
    run("transcribe", model_folder, mixed, "--save", saved)
    other = tmp_path / "other"
    network = make_tiny(seed=1)
    network.network.save_pretrained(other)
    network.processor.save_pretrained(other)
    run("transcribe", other, mixed, "--save", saved)
    fresh = api.transcribe(other, [mixed])
    assert [t.text for t in read_transcripts(saved)] == [t.text for t in fresh.transcripts]


def test_nothing_usable_is_an_error(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(DataError, match="none of its recordings can be used"):
        api.evaluate(model_folder, tmp_path)


@pytest.mark.parametrize(("rate", "message"), [(999, "sample rate"), (10**9, "sample rate")])
def test_sample_rates_that_no_speech_has(rate: int, message: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(4000), 16000)
    raw = bytearray((tmp_path / "a.wav").read_bytes())
    raw[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(raw)
    with pytest.raises(AudioError, match=message):
        read_audio(tmp_path / "a.wav")


def test_a_small_file_of_a_very_long_recording_is_refused(tmp_path: Path) -> None:
    """A day of constant sound at 1 kHz is 86 million samples in a flac file of some hundred kilobytes."""
    with soundfile.SoundFile(tmp_path / "day.flac", "w", 1000, 1, subtype="PCM_16") as file:
        for _ in range(24 * 36):
            file.write(np.full(100_000, 0.5))
    assert (tmp_path / "day.flac").stat().st_size < 2_000_000
    with pytest.raises(AudioError, match="longer than 12 hours"):
        read_audio(tmp_path / "day.flac")
