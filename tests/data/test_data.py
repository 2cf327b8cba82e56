"""Corpora in the layouts in which they are handed out, with the rules of their texts."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from sottovoce.data.hub import HubName
from sottovoce.data.load import load_data
from sottovoce.errors import AudioError, DataError
from sottovoce.evaluation.normalize import normalize


def tone(seconds: float, frequency: float = 440.0, rate: int = 16000) -> np.ndarray:
    return (8000 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.int16)


def write_sphere(path: Path, samples: np.ndarray, *, byte_order: str, rate: int = 16000) -> None:
    """A NIST SPHERE file as the corpora hold it: a 1024-byte text header, then samples. `byte_order`: "01" little, "10" big."""
    fields = (
        f"channel_count -i 1\nsample_count -i {len(samples)}\nsample_rate -i {rate}\nsample_min -i {samples.min()}\n"
        f"sample_max -i {samples.max()}\nsample_n_bytes -i 2\nsample_byte_format -s2 {byte_order}\nsample_sig_bits -i 16\n"
        "sample_coding -s3 pcm\nend_head\n"
    )
    header = f"NIST_1A\n   1024\n{fields}".encode().ljust(1024)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + samples.astype("<i2" if byte_order == "01" else ">i2").tobytes())


STM = """;; comment: the first field is the recording
AlGore_2009 1 AlGore_2009 0.50 1.50 <o,f0,male> i 'm going <unk> to talk about the(2) world 's climate
AlGore_2009 1 AlGore_2009 1.50 2.00 <o,,unknown> ignore_time_segment_in_scoring
AlGore_2009 1 AlGore_2009 2.00 3.25 <o,f0,male> {SMACK} don 't stop {BREATH} now
AlGore_2009 1 inter_segment_gap 3.25 3.50 <o,,unknown> <unk>
"""


@pytest.mark.parametrize("byte_order", ["01", "10"])
def test_tedlium_tree(tmp_path: Path, byte_order: str) -> None:
    samples = np.concatenate([tone(2.0), tone(2.0, 880.0)])
    write_sphere(tmp_path / "legacy" / "test" / "sph" / "AlGore_2009.sph", samples, byte_order=byte_order)
    (tmp_path / "legacy" / "test" / "stm").mkdir()
    (tmp_path / "legacy" / "test" / "stm" / "AlGore_2009.stm").write_text(STM)
    data = load_data(tmp_path / "legacy" / "test")
    assert [u.text for u in data] == ["i'm going to talk about the world's climate", "don't stop now"]
    assert data.left_out == 2
    assert [u.speaker for u in data] == ["AlGore_2009"] * 2
    assert [u.span for u in data] == [(0.5, 1.5), (2.0, 3.25)]
    first, second = (u.samples() for u in data)
    np.testing.assert_allclose(first, samples[8000:24000] / 32768, atol=1e-6)
    assert len(second) == 1.25 * 16000
    assert np.abs(np.fft.rfft(second)).argmax() / 1.25 == pytest.approx(880, abs=1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Talk 1 A 0.0", "wanted file, channel"),
        ("Talk 1 A zero 1.0 <o> words", "must be seconds"),
        ("Talk 1 A 2.0 1.0 <o> words", "has no length"),
    ],
)
def test_bad_stm_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    write_sphere(tmp_path / "sph" / "Talk.sph", tone(1.0), byte_order="01")
    (tmp_path / "stm").mkdir()
    (tmp_path / "stm" / "Talk.stm").write_text(";; c\n" + line + "\n")
    with pytest.raises(DataError, match=f"Talk.stm, line 2: .*{message}"):
        load_data(tmp_path)


def test_a_segment_beyond_its_recording_is_refused(tmp_path: Path) -> None:
    write_sphere(tmp_path / "sph" / "Talk.sph", tone(1.0), byte_order="01")
    (tmp_path / "stm").mkdir()
    (tmp_path / "stm" / "Talk.stm").write_text("Talk 1 A 0.2 1.1 <o> rounded up\nTalk 1 A 5.0 9.0 <o> elsewhere\n")
    near, beyond = load_data(tmp_path)
    assert len(near.samples()) == pytest.approx(0.8 * 16000, abs=1)
    with pytest.raises(AudioError, match=r"is 1.00 s long, but a segment from 5.00 s to 9.00 s"):
        beyond.samples()
    (tmp_path / "sph" / "Talk.sph").unlink()
    with pytest.raises(DataError, match=r"no Talk.sph"):
        load_data(tmp_path)


SPGI = """wav_filename|wav_filesize|transcript
0018ad922e541b415ae60e175160b976/1.wav|32044|Net income was $4.2 million, or "$0.12" per share.
0018ad922e541b415ae60e175160b976/2.wav|32044|He said: "that's it.
0a/7.wav|32044|Thank you.
"""


def spgispeech(root: Path) -> Path:
    (root / "val.csv").write_text(SPGI)
    for name in ("0018ad922e541b415ae60e175160b976/1", "0018ad922e541b415ae60e175160b976/2", "0a/7"):
        (root / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / "val" / f"{name}.wav", tone(1.0), 16000)
    return root


def test_spgispeech_tree(tmp_path: Path) -> None:
    data = load_data(spgispeech(tmp_path))
    assert [u.text for u in data][:2] == ['Net income was $4.2 million, or "$0.12" per share.', "He said: \"that's it."]
    assert [u.speaker for u in data] == ["0018ad922e541b415ae60e175160b976"] * 2 + ["0a"]
    assert all(len(u.samples()) == 16000 for u in data)
    assert [u.id for u in load_data(tmp_path / "val.csv")] == [u.id for u in data]
    assert normalize(data.utterances[0].text or "") == "net income was $4200000 or ¢12 per share"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wav_filename|transcript\na.wav|x\n", "first line must be"),
        (SPGI.splitlines()[0] + "\na.wav|3\n", "line 2: wanted 3 columns"),
        (SPGI.splitlines()[0] + "\n../../etc/a.wav|3|x\n", "is outside"),
    ],
)
def test_bad_spgispeech_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "val.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "val.csv")


def test_librispeech_tree(tmp_path: Path) -> None:
    chapter = tmp_path / "test-clean" / "1089" / "134686"
    chapter.mkdir(parents=True)
    (chapter / "1089-134686.trans.txt").write_text("1089-134686-0000 HE HOPED THERE WOULD BE STEW\n")
    soundfile.write(chapter / "1089-134686-0000.flac", tone(1.0), 16000)
    (utterance,) = load_data(tmp_path)
    assert (utterance.id, utterance.speaker) == ("1089-134686-0000", "1089")
    assert utterance.text == "HE HOPED THERE WOULD BE STEW"


def test_hub_names() -> None:
    assert HubName.parse("hf:openslr/librispeech_asr:clean:test") == HubName("openslr/librispeech_asr", "clean", "test", {})
    assert HubName.parse("hf:a/b:dev").split == "dev"
    assert HubName.parse("hf:a/b?text=words") == HubName("a/b", None, "test", {"text": "words"})
    with pytest.raises(DataError, match="wanted hf:NAME"):
        HubName.parse("hf:a:b:c:d")
    with pytest.raises(DataError, match="'words' is not a column's role"):
        HubName.parse("hf:a?words=x")


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    """A data set as the Hub holds it: parquet files with the sound files' bytes, one folder per split."""
    folder = tmp_path / "set"
    (folder / "test").mkdir(parents=True)
    rows = []
    for i, text in enumerate(["it 's one", "ignore_time_segment_in_scoring", "three <unk> words"]):
        sound = io.BytesIO()
        soundfile.write(sound, tone(0.5 + i, rate=22050), 22050, format="FLAC")
        audio = {"bytes": sound.getvalue(), "path": f"{i}.flac"}
        rows.append({"audio": audio, "sentence": text, "speaker_id": 7 + i, "shout": text.upper(), "id": f"u{i}"})
    table = pa.Table.from_pylist(rows)
    kinds = {name: {"dtype": "string", "_type": "Value"} for name in ("sentence", "shout", "id")}
    features = {"audio": {"_type": "Audio"}, "speaker_id": {"dtype": "int64", "_type": "Value"}, **kinds}
    about = json.dumps({"info": {"features": {name: features[name] for name in table.column_names}}})
    pq.write_table(table.replace_schema_metadata({"huggingface": about}), folder / "test" / "0000.parquet")
    return folder


def test_hub_data_sets_are_streamed(parquet_folder: Path) -> None:
    data = load_data(f"hf:{parquet_folder}")
    assert [u.text for u in data] == ["it's one", "three words"]
    assert data.left_out == 1
    assert [u.speaker for u in data] == ["7", "9"]
    assert [u.id for u in data] == ["000000-u0", "000002-u2"]
    assert [len(u.samples()) for u in data] == [8000, 40000]
    assert len(load_data(f"hf:{parquet_folder}:test", at_most=1)) == 1
    assert next(iter(load_data(f"hf:{parquet_folder}:test?text=shout"))).text == "IT'S ONE"
    with pytest.raises(DataError, match=r"has no column 'words', but .*name it with \?text=COLUMN"):
        load_data(f"hf:{parquet_folder}?text=words")
    with pytest.raises(DataError, match="cannot be read from the Hub"):
        load_data(f"hf:{parquet_folder}:nosplit")
    with pytest.raises(DataError, match="cannot be read from the Hub"):
        load_data("hf:nobody/nothing-of-that-name")
