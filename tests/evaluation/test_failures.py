"""Loops are found, repeated words of ordinary speech are not."""

import pytest

from sottovoce.evaluation.failures import is_loop


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("so we went home", False),
        ("no no no no no", True),
        ("thank you thank you thank you thank you thank you", True),
        ("and then he said and then he said and then he said goodbye", False),
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
        ("ご視聴ありがとうございました" * 5, True),
        ("昨日は雨でしたが今日は晴れていますので散歩に行きましょう", False),
    ],
)
def test_loops_of_characters(text: str, loop: bool) -> None:
    assert is_loop(" ".join(text), characters=True) == loop
