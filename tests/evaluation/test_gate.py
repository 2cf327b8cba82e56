"""The gate counts failures that a system adds to those of its reference system."""

from dataclasses import replace

from sottovoce.evaluation.gate import gate
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_transcripts


def hypothesis(text: str, reference: str | None, name: str = "u") -> Transcript:
    return Transcript(id=name, text=text, tokens=(), duration_s=1.0, reference=reference)


def test_the_gate_counts_failures_that_were_added() -> None:
    loop = "again and again " * 12
    ours = score_transcripts(
        [
            hypothesis(loop, "again once more", "loop"),
            hypothesis("", "one two", "empty"),
            hypothesis("thank you", "", "silence"),
            replace(hypothesis("word", "word", "cut"), truncated=True),
            hypothesis("fine", "fine", "ok"),
        ]
    )
    assert (ours.looped, ours.empty, ours.spoken_silence, ours.truncated) == (
        ("loop",), ("empty",), ("silence",), ("cut",),
    )  # fmt: skip
    clean = score_transcripts(
        [
            hypothesis("again once more", "again once more", "loop"),
            hypothesis("", "one two", "empty"),
            hypothesis("fine", "fine", "ok"),
        ]
    )
    verdict = gate(ours, clean)
    assert not verdict.open
    assert verdict.added == {"looped": ("loop",), "empty": (), "spoken_silence": ("silence",), "truncated": ("cut",)}
    assert gate(ours, clean, tolerance=1).open
    assert gate(clean, ours).open
