"""Manifests and tables as other tools write them."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.checkpoint.resume import StoredRun
from sottovoce.data.dataset import Utterance
from sottovoce.data.load import load_data
from sottovoce.errors import AudioError, DataError
from sottovoce.evaluation.transcript_cache import TranscriptCache
from sottovoce.evaluation.transcripts import Transcript, read_transcripts, write_transcripts
from sottovoce.system.text_files import split_lines

# All at which str.splitlines splits, but for the line ends themselves.
BREAKS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
TEXT = "one" + "two".join(BREAKS) + "three"


def texts(path: Path) -> list[tuple[str, str | None]]:
    return [(u.id, u.text) for u in load_data(path)]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


ROWS = [{"audio": "a.wav", "text": "schön"}, {"audio": "b.wav", "text": "two"}]
READ = [("a", "schön"), ("b", "two")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    (tmp_path / "m.jsonl").write_bytes(lines(*ROWS).replace("\n", end).encode(encoding))
    assert texts(tmp_path / "m.jsonl") == READ


def test_manifests_that_were_joined_keep_marks_inside(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b"".join(lines(row).encode("utf-8-sig") for row in ROWS))
    assert texts(tmp_path / "m.jsonl") == READ


def test_characters_that_look_like_line_ends_stay_in_their_text(tmp_path: Path) -> None:
    raw = "".join(c for c in BREAKS if ord(c) >= 0x7F)  # JSON escapes the others
    row = {"audio": "a.wav", "text": TEXT}
    (tmp_path / "m.jsonl").write_text(lines(row, ROWS[1]), encoding="utf-8")
    assert raw[0] in (tmp_path / "m.jsonl").read_text(encoding="utf-8")
    assert texts(tmp_path / "m.jsonl") == [("a", TEXT), ("b", "two")]


@given(st.text(), st.text())
def test_lines_are_split_as_a_file_is_read(one: str, two: str) -> None:
    import io

    text = f"{one}\n{two}"
    expected = [line.removesuffix("\n").removeprefix("\ufeff") for line in io.TextIOWrapper(
        io.BytesIO(text.encode(errors="surrogatepass")), encoding="utf-8", errors="surrogatepass", newline=None)]  # fmt: skip
    assert split_lines(text) == expected


def transcript(name: str) -> Transcript:
    return Transcript(id=name, text=TEXT, tokens=(1,), duration_s=1.0, reference=TEXT)


def test_our_own_transcripts_are_read_back(tmp_path: Path) -> None:
    whole = (transcript("a"), transcript(f"b{TEXT}"))
    write_transcripts(tmp_path / "t.jsonl", whole)
    assert read_transcripts(tmp_path / "t.jsonl") == whole
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "t.jsonl").read_bytes())
    assert read_transcripts(tmp_path / "t.jsonl") == whole


def test_the_cache_of_transcripts_finds_them_again(tmp_path: Path) -> None:
    utterances = [Utterance(id=f"{name}{TEXT}", audio=tmp_path / name) for name in "ab"]
    ids = [u.id for u in utterances]
    TranscriptCache(tmp_path / "t.jsonl", {}, ids).add(utterances, [transcript(name) for name in ids])
    again = TranscriptCache(tmp_path / "t.jsonl", {}, ids)
    assert [again.transcript(u) for u in utterances] == [transcript(u.id) for u in utterances]


def test_calibration_transcripts_of_a_stopped_run_are_found_again(tmp_path: Path) -> None:
    state = StoredRun(tmp_path / "out")
    state.folder.mkdir()
    state.add_transcripts({TEXT: (1, 2)})
    with (state.folder / "transcripts.jsonl").open("a", encoding="utf-8") as file:
        file.write(lines([f"x{TEXT}", [3]]))
    assert state.transcripts() == {TEXT: (1, 2), f"x{TEXT}": (3,)}


def test_corpora_keep_such_characters_too(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "1-2-0000.flac", np.ones(1600) / 2, 16000)
    (tmp_path / "1-2.trans.txt").write_bytes("\ufeff1-2-0000 HE\u2028HOPED\n".encode())
    assert texts(tmp_path) == [("1-2-0000", "HE\u2028HOPED")]
    (tmp_path / "val.csv").write_bytes("\ufeffwav_filename|wav_filesize|transcript\na/1.wav|3|so\x85on\n".encode())
    assert texts(tmp_path / "val.csv") == [("a/1", "so\x85on")]
    (tmp_path / "stm").mkdir()
    (tmp_path / "1-2.trans.txt").unlink()
    (tmp_path / "1-2-0000.flac").rename(tmp_path / "stm" / "t.flac")
    (tmp_path / "stm" / "t.stm").write_text("t 1 A 0.00 0.05 <o> he\u2028hoped\n", encoding="utf-8")
    assert [text for _, text in texts(tmp_path)] == ["he hoped"]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["m.json", "m.jsonl"])
def test_a_json_array(tmp_path: Path, name: str, indent: int | None) -> None:
    (tmp_path / name).write_text(json.dumps(ROWS, indent=indent), encoding="utf-8-sig")
    assert texts(tmp_path / name) == READ
    (tmp_path / name).write_text(json.dumps([*ROWS, {"text": "no path"}], indent=indent))
    with pytest.raises(DataError, match=f'{name}, row 3: wanted an object with "audio"'):
        load_data(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\n  \"audio\": \"a.wav\"\n}", "wanted one JSON object a line, or one array of them"),
        ('[{"audio": "a.wav"},', "is not JSON"),
        ('{"data": [{"audio": "a.wav"}]}', 'wanted an object with "audio"'),
        ('{"audio": "a.wav", "text": "\\ud800"}', "half of a character"),
        ('{"audio_filepath": "a.wav", "offset": -1}', "'offset' must be a number of seconds, got -1"),
        ('{"audio_filepath": "a.wav", "offset": 1, "duration": true}', "'duration' must be a number"),
        ('{"audio_filepath": "a.wav", "offset": 1, "duration": 0}', "a duration of 0 s"),
        ('{"audio_filepath": "a.wav", "offset": NaN}', "'offset' must be a number"),
    ],
)  # fmt: skip
def test_other_json_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "m.json")


@pytest.mark.parametrize(
    ("audio", "text"),
    [("audio", "text"), ("audio_filepath", "transcript"), ("file_name", "transcription"), ("Path", "Sentence"), ("File Name", "raw_text")],
)
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("csv", ";"), ("csv", "\t"), ("csv", "|"), ("tsv", "\t")])
def test_tables_by_the_usual_names_of_columns(tmp_path: Path, audio: str, text: str, suffix: str, delimiter: str) -> None:
    with (tmp_path / f"t.{suffix}").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(
            [["up_votes", audio, text], ["1", "a.wav", "schön"], [], ["2", "b.wav", 'she said "yes, no"; or\u2028not']]
        )
    assert texts(tmp_path / f"t.{suffix}") == [("a", "schön"), ("b", 'she said "yes, no"; or\u2028not')]


def test_a_csv_with_a_text_of_two_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('file_name,transcription\r\na.wav,"one\r\ntwo"\r\nb.wav,three\r\n')
    assert [(name, (text or "").split()) for name, text in texts(tmp_path / "t.csv")] == [("a", ["one", "two"]), ("b", ["three"])]


COMMON_VOICE = """client_id\tpath\tsentence_id\tsentence\tup_votes\tdown_votes\tage\tgender\tlocale
f00d\tcommon_voice_de_1.mp3\t77\tSie sagte: "Ja.\t2\t0\t\t\tde
beef\tcommon_voice_de_2.mp3\t78\t"Nein", sagte er, "danke"\t2\t0\t\t\tde
"""


def test_common_voice_with_its_folder_of_clips(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "test.tsv").write_text(COMMON_VOICE)
    soundfile.write(tmp_path / "clips" / "common_voice_de_1.mp3", np.ones(16000) / 2, 16000)
    first, second = load_data(tmp_path / "test.tsv")
    assert (first.text, first.speaker, first.language) == ('Sie sagte: "Ja.', "f00d", "de")
    assert second.text == '"Nein", sagte er, "danke"'
    assert len(first.samples()) == pytest.approx(16000, abs=1500)
    with pytest.raises(AudioError, match="no such file"):
        second.samples()
    assert [u.id for u in load_data(tmp_path)] == [first.id, second.id]
    (tmp_path / "dev.tsv").write_text(COMMON_VOICE)
    with pytest.raises(DataError, match=r"holds 2 tables of recordings \(dev.tsv, test.tsv\); give one of them"):
        load_data(tmp_path)


def test_nemo(tmp_path: Path) -> None:
    ramp = np.arange(32000) / 64000
    soundfile.write(tmp_path / "talk.wav", ramp, 16000, subtype="FLOAT")
    rows = [
        {"audio_filepath": "talk.wav", "duration": 2.0, "text": "whole"},
        {"audio_filepath": str(tmp_path / "talk.wav"), "offset": 0.5, "duration": 0.25, "text": "piece", "lang": "en"},
        {"audio_filepath": "talk.wav", "offset": 1.5, "text": "the end"},
    ]
    (tmp_path / "train_manifest.json").write_text(lines(*rows))
    whole, piece, end = load_data(tmp_path / "train_manifest.json")
    np.testing.assert_allclose(whole.samples(), ramp, atol=1e-7)
    np.testing.assert_allclose(piece.samples(), ramp[8000:12000], atol=1e-7)
    np.testing.assert_allclose(end.samples(), ramp[24000:], atol=1e-7)
    assert [u.text for u in (whole, piece, end)] == ["whole", "piece", "the end"]
    assert piece.language == "en"


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_an_audio_folder(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("test", "train"):
        (tmp_path / split).mkdir()
        soundfile.write(tmp_path / split / "0.wav", np.full(1600, 0.25 if split == "test" else 0.5), 16000)
        content = (
            "file_name,transcription\n0.wav,of {}\n" if name.endswith("csv") else '{{"file_name": "0.wav", "transcription": "of {}"}}\n'
        )
        (tmp_path / split / name).write_text(content.format(split))
    (tmp_path / split / f"._{name}").write_bytes(b"\x00\x05\x16\x07")
    assert texts(tmp_path / "test") == [("0", "of test")]
    with caplog.at_level(logging.WARNING):
        both = load_data(tmp_path)
    assert [(u.id, u.text, float(u.samples()[0])) for u in both] == [("test/0.wav", "of test", 0.25), ("train/0.wav", "of train", 0.5)]
    assert f"reads test/{name}, train/{name} together" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.wav,hello\n", r"names no column of paths; wanted a column audio, .*file_name, .*path.* text, .*transcription|sentence"),
        ("", "names no column of paths"),
        ("file_name,text\na.wav,x,y\n", "line 2: wanted 2 columns, got 3"),
        ('file_name,text\na.wav,"open\nb.wav,x\n', "line 3: unexpected end of data"),
        ("file_name,text\n,x\n", 'line 2: wanted an object with "audio"'),
    ],
)
def test_other_tables_are_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "t.csv")


def test_an_empty_cell_is_an_unknown_text_and_a_table_without_texts_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "t.csv").write_text("file_name,text\na.wav,\nb.wav,x\n")
    assert texts(tmp_path / "t.csv") == [("a", None), ("b", "x")]
    (tmp_path / "t.csv").write_text("file_name,words\na.wav,x\n")
    with caplog.at_level(logging.WARNING):
        assert texts(tmp_path / "t.csv") == [("a", None)]
    assert "no text is known of its recordings; its columns are file_name, words" in caplog.text


def test_a_table_beside_the_files_it_lists_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(1600) / 2, 16000)
    (tmp_path / "notes.csv").write_text("date,weather\nmonday,rain\n")
    assert texts(tmp_path) == [("a", None)]
    (tmp_path / "said.csv").write_text("path,text\na.wav,hello\n")
    with caplog.at_level(logging.WARNING):
        assert texts(tmp_path) == [("a", "hello")]
    assert "reads the recordings that said.csv lists" in caplog.text


def test_an_empty_speaker_is_none(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(1600), 16000)
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": "a.wav", "speaker": ""}) + "\n")
    assert load_data(tmp_path / "m.jsonl").utterances[0].speaker is None
