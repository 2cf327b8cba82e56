"""Scores by hand, alone and against a reference system."""

import math
from dataclasses import replace

import numpy as np
import pytest

from sottovoce.errors import DataError
from sottovoce.evaluation.gate import gate
from sottovoce.evaluation.intervals import bootstrap_interval
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import combine_utterances, recognized_words, score_pair, score_to_dict, score_transcripts, score_utterance


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


def test_what_a_score_is_as_plain_data() -> None:
    """Rates in percent, by hand: three errors of words in eight, and the failures by name."""
    ours = [
        hypothesis("cats dogs bird fish", "cats dogs birds fish", "a"),
        replace(hypothesis("oak elm", "oak elm pine fir", "b"), truncated=True),
        hypothesis("um", "", "c"), hypothesis("x", None, "d"),
    ]  # fmt: skip
    theirs = [
        hypothesis("cats dogs", "cats dogs birds fish", "a"),
        hypothesis("oak elm pine fir", "oak elm pine fir", "b"),
        hypothesis("", "", "c"),
    ]
    score = score_transcripts(ours, theirs)
    assert score.paired is not None
    found, characters = score_to_dict(score), len("cats dogs birds fish") + len("oak elm pine fir")
    assert found["paired"] == {
        "difference_percent": pytest.approx(100 * (3 - 2) / 8), "interval_percent": [100 * score.paired.low, 100 * score.paired.high],
        "better": ["a"], "worse": ["b"], "sign_test": 1.0, "quality_of_inference": 0.5,
    }  # fmt: skip
    assert {name: found[name] for name in ("utterances", "words", "characters", "substitutions", "insertions", "deletions")} == {
        "utterances": 2, "words": 8, "characters": characters, "substitutions": 1, "insertions": 0, "deletions": 2,
    }  # fmt: skip
    assert found["wer_percent"] == found["rate_percent"] == found["capped_wer_percent"] == pytest.approx(100 * 3 / 8)
    assert found["cer_percent"] == found["capped_cer_percent"] == pytest.approx(100 * (1 + len(" pine fir")) / characters)
    assert found["interval_percent"] == [100 * score.low, 100 * score.high]
    assert [found[name] for name in ("truncated", "looped", "empty", "silences", "unscored")] == [["b"], [], [], 1, 1]
    assert (found["metric"], found["languages"], found["decodings"]) == ("WER", ["en"], ["greedy"])
    assert score_to_dict(score_transcripts(ours))["paired"] is None
    assert score_transcripts(ours).quality_of_inference is None


def test_intervals_are_those_of_the_utterances_by_the_seed() -> None:
    words, lost, lost_by_theirs = np.array([3, 4, 5, 6, 7]), np.array([0, 1, 2, 0, 1]), np.array([0, 1, 0, 1, 0])

    def without(last: np.ndarray) -> list[Transcript]:
        said = ["oak elm pine fir ash yew box".split()[:count] for count in words]
        return [
            hypothesis(" ".join(text[: len(text) - n]), " ".join(text), str(i)) for i, (text, n) in enumerate(zip(said, last, strict=True))
        ]

    ours, theirs = without(lost), without(lost_by_theirs)
    for seed in (0, 3):
        score = score_transcripts(ours, theirs, seed=seed)
        assert (score.low, score.high) == bootstrap_interval(lost, words, seed=seed)
        assert score.paired is not None
        assert (score.paired.low, score.paired.high) == bootstrap_interval(lost - lost_by_theirs, words, seed=seed)
        assert (score.paired.better, score.paired.worse) == (("3",), ("2", "4"))
        assert score.paired.sign_test == 1.0
    assert score_transcripts(ours).low == bootstrap_interval(lost, words, seed=0)[0]


def test_scores_of_utterances_are_combined_in_any_order() -> None:
    ours = [score_utterance(hypothesis("oak", "oak elm", name)) for name in "ab"]
    theirs = [score_utterance(hypothesis(text, "oak elm", name)) for name, text in (("b", "oak elm"), ("a", ""))]
    paired = combine_utterances(ours, theirs).paired
    assert paired is not None
    assert (paired.better, paired.worse, paired.difference) == (("a",), ("b",), pytest.approx((2 - 2) / 4))
    assert combine_utterances(ours).paired is None
    assert combine_utterances(ours).spoken_silence == ()
    with pytest.raises(DataError, match="the original has no transcript of 'b'"):
        combine_utterances(ours, theirs[1:])
    nothing = combine_utterances([])
    assert math.isnan(nothing.rate)
    assert math.isnan(nothing.low)
    assert (nothing.silences, nothing.invented_words, nothing.unscored, nothing.metric) == (0, 0, 0, "WER")


def test_a_loop_that_was_spoken_is_none() -> None:
    loop = "again and again " * 12
    said, invented = score_utterance(hypothesis(loop, loop)), score_utterance(hypothesis(loop, "again"))
    assert (said.looped, said.errors, invented.looped) == (False, 0, True)
    assert (invented.words, invented.insertions, invented.characters) == (1, 35, len("again"))
    chinese = score_utterance(replace(hypothesis("你" * 10, "你好"), language="zh"))
    assert (chinese.looped, chinese.words, chinese.characters, chinese.errors, chinese.character_errors) == (True, 2, 2, 9, 9)
    assert not score_utterance(replace(hypothesis("你" * 9, "你好"), language="zh")).looped


def test_both_scores_of_a_pair_are_in_the_languages_of_the_first() -> None:
    ours = [replace(hypothesis("東京", "東京都", "a"), language="ja"), replace(hypothesis("x", None, "c"), language="de")]
    theirs = [replace(hypothesis("東", "東京都", "a"), language="en"), hypothesis("y", "y", "b")]
    score, original = score_pair(ours, theirs)
    assert original is not None
    assert (score.metric, original.metric, original.languages, original.words) == ("CER", "CER", ("ja",), 3)
    assert score.paired is not None
    assert score.rate - original.rate == pytest.approx(score.paired.difference) == pytest.approx(-1 / 3)
    assert score_pair(ours, None) == (score_transcripts(ours), None)


def test_words_are_counted_after_normalization() -> None:
    heard = [hypothesis("It's twenty dollars!", None), replace(hypothesis("今天。", None), language="zh"), hypothesis("...", None)]
    assert recognized_words(heard) == len("it is $20".split()) + 2
    assert recognized_words([hypothesis("今天 好", None)], "zh") == 3


def test_an_utterance_that_the_original_lacks_is_named_though_nothing_is_said_in_it() -> None:
    ours = [hypothesis("x", "x", "a"), hypothesis("", "", "b")]
    with pytest.raises(DataError, match="no transcript of 'b'"):
        score_transcripts(ours, [hypothesis("x", "x", "a"), hypothesis("", None, "b")])


def test_the_language_of_the_option_decides_what_is_silence() -> None:
    """A sign that stretches Arabic words is no word there, and invented words are characters in Japanese."""
    stretched = hypothesis("x", "\u0640", "a")
    assert [score_transcripts([stretched], language=language).silences for language in ("ar", "en")] == [1, 0]
    arabic = score_transcripts([replace(stretched, language="ar")], language="en")
    assert (arabic.silences, arabic.utterances) == (1, ())
    invented = hypothesis("今天", "", "a")
    assert [score_transcripts([invented], language=language).invented_words for language in ("ja", "en")] == [2, 1]
    assert score_transcripts([replace(invented, language="ja")]).invented_words == 2
