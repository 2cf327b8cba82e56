"""A recipe refuses what no run could carry out."""

import pytest

from sottovoce.errors import RecipeError
from sottovoce.quantization.recipe import Recipe


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"padding_weight": 5.0}, "weight of padding must be within 0 .. 1, got 5.0"),
        ({"padding_weight": -0.1}, "weight of padding"),
        ({"frame_subsampling": 0}, "n of at least 1, got 0"),
        ({"joined": 1.5}, "share of joined recordings"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [{"padding_weight": 1.0}, {"padding_weight": 0.0}, {"frame_subsampling": 1}, {"joined": 0.0}, {"joined": 1.0}, {"head_bits": 16}],
)
def test_settings_at_the_ends_of_their_ranges(settings: dict[str, float]) -> None:
    ((name, value),) = settings.items()
    assert getattr(Recipe(**settings), name) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [7, 15, 17])
def test_widths_that_no_head_has(bits: int) -> None:
    with pytest.raises(RecipeError, match=f"head bits = {bits} is not supported; choose one of"):
        Recipe(head_bits=bits)
