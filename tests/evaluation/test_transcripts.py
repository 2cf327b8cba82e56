"""Transcript files: written and read back, and bad lines named."""

from pathlib import Path

import pytest

from sottovoce.errors import DataError, OutputError
from sottovoce.evaluation.transcripts import Transcript, _is_ours, read_transcripts, write_transcripts


def test_transcripts_survive_the_file(tmp_path: Path) -> None:
    transcripts = (
        Transcript(
            id="a/1",
            text='he said "né"',
            tokens=(1, 2),
            duration_s=1.25,
            reference="x",
            pieces=2,
            truncated=True,
            language="fr",
            decoding="fallback",
            temperature=0.2,
        ),
        Transcript(id="b", text="", tokens=(), duration_s=0.5),
    )
    write_transcripts(tmp_path / "new" / "t.jsonl", transcripts)
    assert read_transcripts(tmp_path / "new" / "t.jsonl") == transcripts
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["t.jsonl"]


def test_only_id_and_text_are_wanted_and_other_keys_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": "x", "text": "y", "duration_s": 2, "wer": 0.5}\n')
    assert read_transcripts(tmp_path / "t.jsonl") == (Transcript(id="x", text="y", tokens=(), duration_s=2.0),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2: is not JSON"),
        ("[1]", "wanted an object"),
        ('{"id": "x"}', "wanted an object"),
        ('{"id": "x", "text": "y", "reference": 3}', "reference"),
        ('{"id": "x", "text": "y", "duration_s": NaN}', "duration_s"),
        ('{"id": "x", "text": "y", "tokens": ["a"]}', "tokens"),
        ('{"id": "x", "text": "y", "language": 3}', "language"),
        ('{"id": "x", "text": "y", "decoding": null}', "decoding"),
        ('{"id": "x", "text": "y", "temperature": -1}', "temperature"),
        ('{"id": "x", "text": "y", "duration_s": true}', "line 2: duration_s: wanted a number, got True"),
        ('{"id": "x", "text": "y", "tokens": [1, true]}', r"tokens\[1\]: wanted a whole number, got True"),
        ('{"id": "x", "text": "y", "pieces": "2"}', "pieces: wanted a whole number, got '2'"),
        ('{"id": "x", "text": "y", "pieces": true}', "pieces: wanted a whole number, got True"),
        ('{"id": "x", "text": "y", "pieces": 0}', "pieces: wanted a whole number that is at least 1, got 0"),
        ('{"id": "x", "text": "y", "truncated": 1}', "truncated: wanted true or false, got 1"),
        ('{"id": "x", "text": "y", "truncated": "true"}', "truncated: wanted true or false, got 'true'"),
        ('{"id": "x", "text": "y", "log_probabilities": [0.5]}', "log_probabilities: wanted a list of numbers that are at most 0"),
        ('{"id": "x", "text": "y", "log_probabilities": [false]}', r"log_probabilities\[0\]: wanted a number, got False"),
        ('{"id": "x", "text": "y", "context": true}', "context: wanted a whole number or null, got True"),
        ('{"id": "x", "text": "y", "context": 0}', "context: wanted a number of encoder positions or null, got 0"),
        ('{"id": "first", "text": "y"}', "occurs twice"),
    ],
)
def test_bad_transcript_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"id": "first", "text": "y"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        read_transcripts(file)


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("duration_s", ("0", "0.5"), ("-0.1", "Infinity", "NaN")),
        ("pieces", ("1",), ("0",)),
        ("log_probabilities", ("[]", "[0.0, -1.5]"), ("[-1.0, 0.001]",)),
        ("temperature", ("0", "1.5"), ("-0.001", "Infinity")),
        ("context", ("null", "1"), ("0", "-1")),
    ],
)
def test_the_ends_of_what_a_line_may_say(tmp_path: Path, name: str, taken: tuple[str, ...], refused: tuple[str, ...]) -> None:
    file = tmp_path / "t.jsonl"
    for value in taken:
        file.write_text(f'{{"id": "a", "text": "b", "{name}": {value}}}\n\n')
        assert len(read_transcripts(file)) == 1
    for value in refused:
        file.write_text(f'{{"id": "a", "text": "b", "{name}": {value}}}\n')
        with pytest.raises(DataError, match=f"line 1: {name}: wanted"):
            read_transcripts(file)


def test_files_that_hold_no_transcripts_are_named(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    for content, said in (
        (b"\n", "holds no transcripts"),
        (b"\xff\n", "cannot be read as a transcript file"),
        (b"[" * 100_000, "line 1: is not JSON"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=said):
            read_transcripts(file)
    with pytest.raises(DataError, match="no such file; give transcripts that --save wrote"):
        read_transcripts(tmp_path / "none.jsonl")
    with pytest.raises(OutputError, match="transcripts cannot be written"):
        write_transcripts(tmp_path, [])


def test_a_file_is_ours_by_its_first_line(tmp_path: Path) -> None:
    """Others have fewer keys, or more, and are not replaced."""
    file = tmp_path / "t.jsonl"
    write_transcripts(file, [Transcript(id="a", text="b", tokens=(1,), duration_s=1.0)], [{"recording": "r", "run": "s"}])
    assert _is_ours(file)
    ours = '{"id": "a", "text": "b", "tokens": [], "duration_s": 1.0}\n'
    for content, wanted in (
        (ours, True), ("\n" + ours + "x\n", True),
        (ours.replace('"tokens": [], ', ""), False), (ours.replace("{", '{"wer": 1, ', 1), False),
        (ours.replace("1.0", "-1.0"), False), ("", False), ("x\n", False), ("[1]\n", False),
    ):  # fmt: skip
        file.write_text(content)
        assert _is_ours(file) == wanted
    assert not _is_ours(tmp_path)


def test_confidences_are_there_for_every_token_or_not_at_all() -> None:
    for count in range(4):
        assert Transcript(id="a", text="b", tokens=(1, 2), duration_s=1.0, log_probabilities=(-0.5,) * count).has_confidences == (
            count == 2
        )
