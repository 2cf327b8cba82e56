"""Pieces of rows: all of them, in order, and scales that do not depend on where a weight was cut."""

import pytest
import torch

from sottovoce.core import pieces
from sottovoce.core.affine import Affine
from sottovoce.core.affine_minimum import AffineMinimum
from sottovoce.core.iq4 import IQ4NL, IQ4XS
from sottovoce.core.number_format import NumberFormat


@pytest.mark.parametrize(
    ("shape", "sizes"), [((5, 8), [2, 2, 1]), ((3, 2, 8), [1, 1, 1]), ((3, 40), [1, 1, 1]), ((2, 0), [2]), ((0, 8), [0])]
)
def test_pieces_are_all_rows_in_order(shape: tuple[int, ...], sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "ON_CPU", 16)
    rows = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    found = pieces.pieces_of(rows)
    assert [len(piece) for piece in found] == sizes
    assert torch.equal(torch.cat(found), rows)


@pytest.mark.parametrize(
    "number_format", [Affine(bits=3), Affine(symmetric=True), AffineMinimum(), IQ4NL(), IQ4XS()], ids=lambda f: f.title
)
@pytest.mark.parametrize("weighted", [False, True])
def test_scales_do_not_depend_on_the_pieces(number_format: NumberFormat, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 5, 512, generator=generator)
    importance = torch.rand(512, generator=generator) if weighted else None
    whole = number_format.fit(weight, importance)
    monkeypatch.setattr(pieces, "ON_CPU", 1024)  # two rows
    cut = number_format.fit(weight, importance)
    assert cut.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(cut[name], tensor), name
        for i in range(2):
            assert torch.equal(number_format.fit(weight[i], importance)[name], tensor[i]), name
