"""Batches of calibration speech: who is beside whom, which positions count, and what is added up in one piece."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sottovoce.errors import CalibrationError
from sottovoce.quantization.batches import PositionWeights, make_batches, plan_pieces
from sottovoce.quantization.windows import Windows


def speech(folds: str, languages: str | None = None) -> Windows:
    """A window for each digit, its number as its only sample; `languages`: a letter for each."""
    count = range(len(folds))
    return Windows(
        samples=tuple(np.full(1, i, np.float32) for i in count), transcripts=tuple((i,) for i in count), folds=tuple(map(int, folds)),
        languages=tuple(languages or (None,) * len(folds)), names=tuple(f"w{i}" for i in count),
    )  # fmt: skip


class Model:
    """Says which inputs it was asked for; five frames, of which the last two are padding, and as many tokens as the window's number."""

    def __init__(self, *, fixed_length: bool = True, frames: bool = True) -> None:
        self.fixed_length, self.frames = fixed_length, frames

    def teacher_forced_inputs(self, samples: list[np.ndarray], transcripts: list[tuple[int, ...]], language: str | None) -> Any:
        masks = {"tokens": torch.ones(len(samples), 2, dtype=torch.bool)}
        if self.frames:
            masks["frames"] = (torch.arange(5) < 3).expand(len(samples), 5)
        return {"numbers": [int(one[0]) for one in samples], "transcripts": transcripts, "language": language}, masks


def test_a_batch_holds_one_language_and_fold_0_comes_first() -> None:
    model, windows = Model(), speech("0101010", "aaabbba")
    batches = make_batches(model, windows, batch_size=2, positions=PositionWeights())  # type: ignore[arg-type]
    assert [batch.inputs["numbers"] for batch in batches] == [[0, 2], [6, 1], [4, 3], [5]]
    assert [batch.inputs["language"] for batch in batches] == ["a", "a", "b", "b"]
    assert [batch.folds.tolist() for batch in batches] == [[0, 0], [0, 1], [0, 1], [1]]
    assert [batch.names for batch in batches] == [("w0", "w2"), ("w6", "w1"), ("w4", "w3"), ("w5",)]
    assert [batch.inputs["transcripts"] for batch in batches][0] == [(0,), (2,)]
    assert [batch.number for batch in batches] == [0, 1, 2, 3]
    some = make_batches(model, windows, batch_size=2, positions=PositionWeights(), wanted=lambda piece: piece.number in (1, 3))  # type: ignore[arg-type]
    assert [batch.number for batch in some] == [1, 3]
    alone = make_batches(Model(fixed_length=False), windows, batch_size=2, positions=PositionWeights())  # type: ignore[arg-type]
    assert [batch.inputs["numbers"] for batch in alone] == [[0], [2], [6], [1], [4], [3], [5]]


@pytest.mark.parametrize(
    ("padding", "subsampling", "wanted"),
    [(0.0, 1, [1, 1, 1, 0, 0]), (0.25, 1, [1, 1, 1, 0.25, 0.25]), (0.25, 2, [1, 0, 1, 0, 0.25]), (1.0, 3, [1, 0, 0, 1, 0])],
)
def test_frames_count_by_what_is_asked_for(padding: float, subsampling: int, wanted: list[float]) -> None:
    positions = PositionWeights(padding=padding, subsampling=subsampling)
    (batch,) = make_batches(Model(), speech("01"), batch_size=2, positions=positions)  # type: ignore[arg-type]
    assert batch.weights["frames"].tolist() == [wanted] * 2
    assert batch.weights["tokens"].tolist() == [[1, 1]] * 2
    (batch,) = make_batches(Model(frames=False), speech("01"), batch_size=2, positions=positions)  # type: ignore[arg-type]
    assert batch.weights.keys() == {"tokens"}


@pytest.mark.parametrize(
    ("count", "batch_size", "groups"),
    [
        (7, 4, [0, 0]),
        (8, 4, [0, 0]),
        (9, 4, [0, 0, 1]),
        (17, 8, [0, 1, 2]),
        (14, 3, [0, 0, 0, 1, 1]),  # three batches of three are eight windows, and one more
        (20, 1, [0] * 8 + [1] * 8 + [2] * 4),
        (20, 16, [0, 1]),
    ],
)
def test_eight_windows_or_more_make_a_group(count: int, batch_size: int, groups: list[int]) -> None:
    """Ranks share groups out, and a group's products are added up in one piece: other groups would be other last digits."""
    pieces = plan_pieces(SimpleNamespace(fixed_length=True), speech("0" * count), batch_size)  # type: ignore[arg-type]
    assert [piece.group for piece in pieces] == groups
    assert [piece.closes for piece in pieces] == [a != b for a, b in zip(groups, [*groups[1:], None], strict=True)]
    assert sum(len(piece.rows) for piece in pieces) == count


@pytest.mark.parametrize(("padding", "subsampling"), [(-0.01, 1), (1.01, 1), (0.5, 0)])
def test_weights_out_of_range_are_refused(padding: float, subsampling: int) -> None:
    with pytest.raises(CalibrationError, match="within 0 .. 1 and subsampling"):
        PositionWeights(padding=padding, subsampling=subsampling)
