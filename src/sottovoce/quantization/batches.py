"""Batches of calibration speech: which windows make which batch, and how much each of their positions counts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sottovoce.errors import CalibrationError
from sottovoce.models.batching import Batch, batches_by_language
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.windows import Windows


@dataclass(frozen=True, kw_only=True)
class PositionWeights:
    """How much encoder positions count. `padding`: weight of positions beyond the end of the audio, 0 to 1. `subsampling`: only every
    n-th position counts (neighboring frames of 20 ms are nearly the same)."""

    padding: float = 0.0
    subsampling: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.padding <= 1 or self.subsampling < 1:
            raise CalibrationError(f"padding weight {self.padding} must be within 0 .. 1 and subsampling {self.subsampling} at least 1")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A batch before it is made. `rows`: numbers of its windows; the rest: see `Batch`."""

    rows: tuple[int, ...]
    number: int
    group: int
    closes: bool


GROUP_WINDOWS = 8  # of batches whose products are added up in one piece


def make_batches(
    model: SpeechModel,
    windows: Windows,
    *,
    batch_size: int,
    positions: PositionWeights,
    wanted: Callable[[Piece], bool] = lambda _: True,
) -> list[Batch]:
    """Make teacher-forced batches of `batch_size` windows: first those of fold 0, then those of fold 1, each in the given order but
    language by language, none of which share a batch.

    (So that all but one batch at most belong to one fold, and their products are computed in one piece.) `wanted`: makes only these.
    """
    batches = []
    for piece in plan_pieces(model, windows, batch_size):
        if not wanted(piece):
            continue
        which = piece.rows
        inputs, masks = model.teacher_forced_inputs(
            [windows.samples[i] for i in which], [windows.transcripts[i] for i in which], windows.languages[which[0]]
        )
        weights = {kind: mask.float() for kind, mask in masks.items()}
        if "frames" in weights:
            frames = torch.where(masks["frames"], weights["frames"], positions.padding)
            frames[:, torch.arange(frames.shape[1]) % positions.subsampling != 0] = 0
            weights["frames"] = frames
        names = tuple(windows.names[i] for i in which)
        folds = torch.tensor([windows.folds[i] for i in which])
        batches.append(Batch(inputs, weights, folds, names, piece.number, piece.group, piece.closes))
    return batches


def plan_pieces(model: SpeechModel, windows: Windows, batch_size: int) -> list[Piece]:
    """Say which windows make which batch. Groups of batches are what ranks share out, so they do not depend on the number of ranks."""
    if not model.fixed_length:
        batch_size = 1  # padding would change what the network computes
    order = sorted(range(len(windows)), key=lambda i: windows.folds[i])
    pieces, group, in_group = list[Piece](), 0, 0
    found = list(batches_by_language(order, windows.languages, batch_size))
    for number, rows in enumerate(found):
        in_group += len(rows)
        closes = in_group >= GROUP_WINDOWS or number == len(found) - 1
        pieces.append(Piece(rows=tuple(rows), number=number, group=group, closes=closes))
        group, in_group = (group + 1, 0) if closes else (group, in_group)
    return pieces
