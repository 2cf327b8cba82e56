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
