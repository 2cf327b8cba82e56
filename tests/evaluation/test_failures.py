"""Loops are found, repeated words of ordinary speech are not."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.evaluation.failures import COMPRESSION_LIMIT, LONGEST_LOOP, REPEATS, compression_ratio, is_loop
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
