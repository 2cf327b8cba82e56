"""Transcript files: written and read back, and bad lines named."""

from pathlib import Path

import pytest

from sottovoce.errors import DataError
from sottovoce.evaluation.transcripts import Transcript, read_transcripts, write_transcripts


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
