"""Scores by hand, alone and against a reference system."""

import math
from dataclasses import replace

import pytest

from sottovoce.errors import DataError
from sottovoce.evaluation.gate import gate
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_to_dict, score_transcripts


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


def test_a_reference_system_that_recognizes_nothing_proves_nothing() -> None:
    ours = [hypothesis("", "one two", "a"), hypothesis("", "three", "b")]
    theirs = [hypothesis("...", "one two", "a"), hypothesis("", "three", "b")]
    with pytest.raises(DataError, match="recognized no word in 2 utterances with words, so a comparison with it proves nothing"):
        score_transcripts(ours, theirs)
    with pytest.raises(DataError, match="recognized no word"):
        gate(score_transcripts(ours), score_transcripts(theirs))
    theirs[1] = hypothesis("tree", "three", "b")
    assert score_transcripts(ours, theirs).paired is not None


def test_silence_is_scored_as_a_test_for_invented_words() -> None:
    silent = [hypothesis("thank you", "", "a"), hypothesis("", "", "b"), hypothesis("...", "", "c"), hypothesis("you", "♪", "d")]
    score = score_transcripts(silent)
    assert (score.spoken_silence, score.silences, score.invented_words, score.unscored) == (("a", "d"), 4, 3, 0)
    assert math.isnan(score.rate)
    row = score_to_dict(score)
    assert (row["wer_percent"], row["interval_percent"], row["words"]) == (None, [None, None], 0)
    quiet = [replace(transcript, text="") for transcript in silent]
    assert score_transcripts(silent, quiet).paired is None
    assert gate(score, score_transcripts(quiet)).added["spoken_silence"] == ("a", "d")
    assert not gate(score, score_transcripts(quiet)).open
    both = score_transcripts([*silent, hypothesis("cats", "cats dogs", "e")])
    assert (both.wer, both.words, both.invented_words) == (0.5, 2, 3)


def test_the_reference_system_is_scored_in_the_languages_of_the_system() -> None:
    """A model that detects the language may find another; the references are the same all the same."""
    ours = [replace(hypothesis("東京", "東京都", "a"), language="ja"), replace(hypothesis("Hute", "Hüte da", "b"), language="de")]
    theirs = [replace(transcript, language="en") for transcript in ours]
    paired = score_transcripts(ours, theirs).paired
    assert paired is not None
    assert paired.difference == 0


def test_mixed_languages_lead_with_characters() -> None:
    ours = [replace(hypothesis("東京", "東京都", "a"), language="ja"), replace(hypothesis("Hute da", "Hüte da", "b"), language="de")]
    score = score_transcripts(ours)
    assert (score.metric, score.languages) == ("CER", ("de", "ja"))
    assert score.rate == pytest.approx((1 + 1) / (3 + len("Hüte da")))
    assert score.low <= score.rate <= score.high
    assert score.wer == pytest.approx((1 + 1) / (3 + 2))
    assert score.capped_rate == score.capped_cer == score.rate


def test_the_language_of_the_option_counts_where_the_utterance_has_none() -> None:
    assert score_transcripts([hypothesis("Hute", "Hüte")]).wer == 0
    assert score_transcripts([hypothesis("Hute", "Hüte")], language="de").wer == 1
    assert score_transcripts([replace(hypothesis("naive", "naïve"), language="en")], language="de").wer == 0


def test_a_score_says_how_it_was_decoded() -> None:
    ours = [hypothesis("one", "one", "a"), replace(hypothesis("two", "two", "b"), decoding="fallback", temperature=0.4)]
    assert score_transcripts(ours).decodings == ("fallback", "greedy")
    assert score_to_dict(score_transcripts(ours[:1]))["decodings"] == ["greedy"]
