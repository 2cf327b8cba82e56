"""Scores by hand, alone and against a reference system."""

import pytest

from sottovoce.errors import DataError
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_transcripts


def hypothesis(text: str, reference: str | None, name: str = "u") -> Transcript:
    return Transcript(id=name, text=text, tokens=(), duration_s=1.0, reference=reference)


def test_score_by_hand() -> None:
    score = score_transcripts(
        [
            hypothesis("the cat sat on mat", "The cat sat on the mat!", "a"),  # one deletion
            hypothesis("It's twenty dollars please now", "it is $20, please", "b"),  # one insertion
            hypothesis("", "hello there", "c"),  # two deletions, empty
            hypothesis("what", None, "d"),
        ],
        [
            hypothesis("the cat sat on the mat", "The cat sat on the mat!", "a"),
            hypothesis("its", "it is $20, please", "b"),
            hypothesis("", "hello there", "c"),
        ],
    )
    assert (score.words, score.substitutions, score.insertions, score.deletions) == (12, 0, 1, 3)
    assert score.wer == pytest.approx(4 / 12)
    assert score.low <= score.wer <= score.high
    assert score.empty == ("c",)
    assert score.paired is not None
    assert score.paired.worse == ("a",)
    assert score.unscored == 1


def test_scores_need_references_and_the_same_utterances() -> None:
    with pytest.raises(DataError, match="no utterance has a reference"):
        score_transcripts([hypothesis("x", None)])
    with pytest.raises(DataError, match="no transcript of 'a'"):
        score_transcripts([hypothesis("x", "x", "a")], [hypothesis("x", "x", "b")])


def test_paired_comparison_by_hand() -> None:
    references = ["cats dogs birds fish", "oak elm pine fir", "red green blue black", "sun moon star sky"]
    ours = [hypothesis(t, r, str(i)) for i, (t, r) in enumerate(zip(["cats dogs birds", *references[1:]], references, strict=True))]
    theirs = [hypothesis("", references[0], "0")] + [hypothesis(r, r, str(i)) for i, r in enumerate(references[1:], 1)]
    score = score_transcripts(ours, theirs)
    paired = score.paired
    assert paired is not None
    assert paired.difference == pytest.approx((1 - 4) / 16)
    assert (paired.better, paired.worse) == (("0",), ())
    assert paired.low <= paired.difference <= paired.high <= 0
    assert paired.sign_test == 1.0
    assert score.quality_of_inference == 1.0
    assert score.cer == pytest.approx(len(" fish") / sum(map(len, references)))
    with pytest.raises(DataError, match="differs between"):
        score_transcripts(ours, [hypothesis("x", "quite another text here now", str(i)) for i in range(4)])


def test_a_loop_counts_once_in_the_capped_rate() -> None:
    score = score_transcripts([hypothesis("cats " * 200, "cats dogs birds fish", "a"), hypothesis("oak elm", "oak elm pine fir", "b")])
    assert score.wer == pytest.approx((199 + 2) / 8)
    assert score.capped_wer == pytest.approx((4 + 2) / 8)
