"""Loops are found, repeated words of ordinary speech are not."""

import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.evaluation.failures import COMPRESSION_LIMIT, LONGEST_LOOP, REPEATS, compression_ratio, is_loop, text_loops
from sottovoce.evaluation.normalize import normalize


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("so we went home", False),
        ("no no no no no", True),
        ("thank you thank you thank you thank you thank you", True),
        ("and then he said and then he said and then he said goodbye", False),
        ("so one two one two one two one two one two", True),  # wherever it starts
        ("so one two one two one two one two one too", False),
        ("a b c " * 30, True),
        ("", False),
    ],
)
def test_loops(text: str, loop: bool) -> None:
    assert is_loop(text) == loop


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("東京は日本の首都です", False),
        ("10000000円", False),  # zeros of a number
        ("ハハハハハハ", False),  # laughter
        ("あ" * 10, True),
        ("ありがとう" * 5, True),
        ("はい" + "ありが" * 5, True),
        ("ご視聴ありがとうございました" * 5, True),
        ("昨日は雨でしたが今日は晴れていますので散歩に行きましょう", False),
    ],
)
def test_loops_of_characters(text: str, loop: bool) -> None:
    assert is_loop(" ".join(text), characters=True) == loop


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("ab"), max_size=24))
def test_a_loop_is_a_phrase_that_stands_five_times_in_a_row_anywhere(units: list[str]) -> None:
    found = any(
        units[start : start + size] * REPEATS == units[start : start + size * REPEATS]
        for size in range(1, LONGEST_LOOP + 1)
        for start in range(len(units) - size * REPEATS + 1)
    )
    text = " ".join(units)
    assert is_loop(text) == (found or compression_ratio(text) > COMPRESSION_LIMIT)


def test_long_texts_are_looked_at_by_stretches() -> None:
    """Text compresses the better the longer it is: an hour of ordinary speech is no loop, and a loop within it is one."""
    changelog = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
    text = normalize(" ".join(line for line in changelog.splitlines() if not line.startswith("#")), "en")
    words = text.split()
    assert compression_ratio(text) > COMPRESSION_LIMIT
    assert not is_loop(text)
    phrase = [f"w{i}" for i in range(LONGEST_LOOP + 4)]  # longer than what is looked for word by word
    assert is_loop(" ".join([*words[:900], *(30 * phrase), *words[900:]]))
    assert is_loop(" ".join([*words[:900], *(30 * phrase)]))


def test_compression_is_judged_by_the_ratio_of_whisper() -> None:
    """Letters that are compressed to a known length; at 2.4 it is no loop yet."""
    assert compression_ratio("") == 0
    text = "ü" + "a b c d e f g h i j k l m n o p q r s t u v w x y z"
    assert compression_ratio(text) == len(text.encode()) / len(zlib.compress(text.encode()))
    assert compression_ratio(text) < 1.5
    for count in range(20, 60):
        words = " ".join(f"{i % 13:b}" for i in range(count))
        assert is_loop(words) == (compression_ratio(words) > 2.4)


@pytest.mark.parametrize(("size", "characters", "loop"), [(8, False, True), (9, False, False), (24, True, True), (25, True, False)])
def test_phrases_longer_than_what_is_looked_for_are_none(size: int, characters: bool, loop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight words, or 24 characters, five times; compression would find them all."""
    monkeypatch.setattr("sottovoce.evaluation.failures.compression_ratio", lambda _: 0.0)
    phrase = [chr(ord("a") + i) for i in range(size)]
    assert is_loop(" ".join(phrase * 5), characters=characters) == loop
    assert not is_loop(" ".join((phrase * 5)[:-1]), characters=characters)
    assert not is_loop(" ".join("a" * 9), characters=True)
    assert is_loop(" ".join("a" * 10), characters=True)
    assert [is_loop(" ".join("a" * count)) for count in (4, 5)] == [False, True]


def test_stretches_overlap_and_the_last_one_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1500 characters, each begun in the middle of the one before."""
    seen = list[str]()

    def look(text: str) -> float:
        seen.append(text)
        return 0.0

    monkeypatch.setattr("sottovoce.evaluation.failures.compression_ratio", look)
    for length, starts in (
        (10, [0]),
        (1500, [0]),
        (1501, [0, 1]),
        (2250, [0, 750]),
        (2251, [0, 750, 751]),
        (4000, [0, 750, 1500, 2250, 2500]),
    ):
        text = "".join(chr(0x4E00 + i) for i in range(length))
        for written, characters in ((text, False), (" ".join(text), True)):
            seen.clear()
            assert not is_loop(written, characters=characters)
            assert seen == [text[start : start + 1500] for start in starts]


def test_a_text_is_judged_by_its_language() -> None:
    assert text_loops("No! No. NO, no - no", None)
    assert not text_loops("ハハハハハハ", "ja")
    assert text_loops("ハ" * 10, "ja")
    assert not text_loops("ハ ハ ハ ハ", "en")
