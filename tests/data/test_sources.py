"""Several sources in one go: every recording gets its own words, under an id of its own."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce import api
from sottovoce.data.audio import read_audio
from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.data.files import shown_name
from sottovoce.data.hub import _utterances as hub_utterances
from sottovoce.data.load import load_data, load_sources
from sottovoce.errors import AudioError, DataError
from tests.conftest import make_tiny


def noise(path: Path, seed: int, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.convolve(np.random.default_rng(seed).standard_normal(8000 + 1500 * seed), np.hanning(3 + 9 * seed), mode="same")
    soundfile.write(path, 0.3 * samples / np.abs(samples).max(), 16000, **options)
    return path


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders with a recording of the same name, and the folder they lie in as the place to be."""
    for i in (1, 2):
        noise(tmp_path / f"s{i}" / "001.flac", i)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def alone(file: Path) -> str:
    return api.transcribe(make_tiny(), [file]).transcripts[0].text


def test_two_folders_with_a_file_of_the_same_name(two: Path) -> None:
    found = api.transcribe(make_tiny(), ["s1", "s2"]).transcripts
    assert [t.id for t in found] == ["s1/001.flac", "s2/001.flac"]
    assert [t.text for t in found] == [alone(two / "s1/001.flac"), alone(two / "s2/001.flac")]
    assert found[0].text != found[1].text


def test_the_transcripts_of_several_sources_are_kept_apart_in_a_file(two: Path) -> None:
    whole = api.transcribe(make_tiny(), ["s1", "s2"], save=two / "t.jsonl").transcripts
    lines = [json.loads(line) for line in (two / "t.jsonl").read_text().splitlines()]
    assert [(line["id"], line["text"]) for line in lines] == [(t.id, t.text) for t in whole]


def test_ids_given_in_two_manifests(two: Path) -> None:
    for i in (1, 2):
        (two / f"m{i}.jsonl").write_text(json.dumps({"id": "u", "audio": f"s{i}/001.flac", "text": f"text {i}"}))
    data = load_sources([two / "m1.jsonl", "m2.jsonl", "s1/001.flac"])
    assert [(u.id, u.text) for u in data] == [(f"{two}/m1.jsonl/u", "text 1"), ("m2.jsonl/u", "text 2"), ("s1/001.flac", None)]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("sources", [["s1", "s1/"], ["s1", "s1/001.flac"], ["s1/001.flac", "s1/001.flac"], [".", "s1"]])
def test_a_recording_that_comes_twice_is_refused(sources: list[str]) -> None:
    with pytest.raises(DataError, match="s1/001.flac' is given twice"):
        load_sources(sources)


@pytest.mark.usefixtures("two")
def test_one_source_keeps_its_short_ids() -> None:
    assert [u.id for u in load_sources(["s1"])] == ["001"]
    assert [u.id for u in load_sources(["s1/001.flac"])] == ["s1/001.flac"]


def test_files_that_differ_in_their_suffix_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise(tmp_path / "a.mp3", 1)
    noise(tmp_path / "a.opus", 2, format="OGG", subtype="OPUS")
    noise(tmp_path / "a.mp3.wav", 3)
    noise(tmp_path / "b.wav", 4)
    with caplog.at_level(logging.WARNING):
        data = load_data(tmp_path)
    assert [u.id for u in data] == ["a.mp3", "a.mp3.wav", "a.opus", "b"]
    assert "3 recordings are called by their whole path" in caplog.text
    found = {t.id: t.text for t in api.transcribe(make_tiny(), [tmp_path]).transcripts}
    assert found == {u.id: alone(Path(u.audio)) for u in data if isinstance(u.audio, Path)}


def test_a_manifest_without_ids_whose_paths_end_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"audio": "s1/001.flac", "text": "one"}, {"audio": "s2/001.flac", "text": "two"}, {"id": "001", "audio": "x.flac"}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level(logging.WARNING):
        assert [(u.id, u.text) for u in load_data(tmp_path / "m.jsonl")] == [("s1/001.flac", "one"), ("s2/001.flac", "two"), ("001", None)]
    assert "s1/001.flac, s2/001.flac" in caplog.text
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row | {"id": "given"}) for row in rows))
    with pytest.raises(DataError, match="'given' occurs twice"):
        load_data(tmp_path / "m.jsonl")


def test_rows_of_the_hub_are_counted(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"audio": {"bytes": noise(tmp_path / f"{i}.wav", i).read_bytes(), "path": "001.wav"}, "id": "same"} for i in range(2)]
    table = pa.Table.from_pylist(rows)
    kinds = {"audio": {"_type": "Audio"}, "id": {"dtype": "string", "_type": "Value"}}
    about = json.dumps({"info": {"features": {name: kinds[name] for name in table.column_names}}})
    (tmp_path / "set" / "test").mkdir(parents=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": about}), tmp_path / "set" / "test" / "0.parquet")
    source = f"hf:{tmp_path / 'set'}"
    ids = [u.id for u in load_sources([source, tmp_path / "0.wav"])]
    assert ids == [f"{source}/000000-same", f"{source}/000001-same", str(tmp_path / "0.wav")]


def test_a_data_set_cannot_hold_two_recordings_of_one_id(tmp_path: Path) -> None:
    first, second = (Utterance(id="u", audio=tmp_path / name) for name in ("a.wav", "b.wav"))
    with pytest.raises(DataError, match="'u' stands for two different recordings"):
        DataSet("x", (first, second))
    assert len(DataSet("x", (first, first))) == 2


def test_no_speaker_and_no_word_in_rows_of_the_hub() -> None:
    texts = ["one", "<unk>", "", "two"]
    rows = [{"audio": {"bytes": b"x"}, "text": text, "speaker_id": who} for text, who in zip(texts, (None, 7, 7, ""), strict=True)]
    columns = {"audio": "audio", "text": "text", "speaker": "speaker_id"}
    found, ignored = hub_utterances(rows, columns, "hf:x")
    assert [(u.text, u.speaker) for u in found] == [("one", None), ("", "7"), ("two", None)]
    assert ignored == 1  # something is said there, and nobody knows what


def test_a_name_that_is_no_utf8_becomes_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    noise(tmp_path / "calls" / "cafe.wav", 1).rename(tmp_path / "calls" / name)
    (utterance,) = load_data(tmp_path / "calls")
    assert utterance.id == r"caf\xe9"
    heard = api.transcribe(make_tiny(), [tmp_path / "calls"], save=tmp_path / "t.jsonl")
    assert heard.transcripts[0].id.endswith(r"caf\xe9")
    assert load_sources([tmp_path / "calls" / name]).utterances[0].id.endswith(r"caf\xe9.wav")
    assert "caf" in (tmp_path / "t.jsonl").read_text(encoding="utf-8")
    (tmp_path / "calls" / os.fsdecode(b"n\xe9w.wav")).write_bytes(b"no sound")
    assert list(api.transcribe(make_tiny(), [tmp_path / "calls"]).unusable.values()) != []
    with pytest.raises(AudioError, match=r"^\S*n\\xe9w.wav: cannot be read as audio \(Format not recognised"):
        read_audio(tmp_path / "calls" / os.fsdecode(b"n\xe9w.wav"))
    for odd in ("\ud800.wav", tmp_path / "\ud800.wav"):
        with pytest.raises(AudioError, match="no such file"):
            read_audio(odd)
        assert r"\ud800" in shown_name(odd)
