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
