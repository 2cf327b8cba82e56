"""Fits of K-quants beside those of ggml's own library, which lies in the wheel of transcribe.cpp."""

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sottovoce.core.k_quants import LAYOUTS, KQuant


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    found = importlib.util.find_spec("transcribe_cpp_native")
    assert found is not None
    assert found.origin is not None
    return ctypes.CDLL(str(next((Path(found.origin).parent / "_native").glob("libggml-base*"))))


def by_ggml(library: ctypes.CDLL, kind: str, weight: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Quantize `weight` `[out, in]` with the library, and decode."""
    name = kind.replace("Q", "q")
    blocks, values = np.zeros(weight.size, np.uint8), np.zeros_like(weight)
    pointers = [None if array is None else array.ctypes.data_as(ctypes.c_void_p) for array in (weight, blocks, values, importance)]
    rows, columns = map(ctypes.c_int64, weight.shape)
    getattr(library, f"quantize_{name}")(pointers[0], pointers[1], rows, columns, pointers[3])
    getattr(library, f"dequantize_row_{name}")(pointers[1], pointers[2], ctypes.c_int64(weight.size))
    return values


def by_us(kind: str, weight: Tensor, importance: Tensor | None) -> Tensor:
    number_format = KQuant(type=kind)  # type: ignore[arg-type]
    parameters = number_format.fit(weight, importance)
    return number_format.decode(number_format.encode(weight, parameters), parameters)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_fit_is_as_good_as_ggmls(kind: str, weighted: bool, library: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(64, 1024, generator=generator)
    importance = torch.rand(1024, generator=generator) ** 2 + 0.01 if weighted else None
    theirs = torch.from_numpy(by_ggml(library, kind, weight.numpy(), None if importance is None else importance.numpy()))
    ours = by_us(kind, weight, importance)
    counted = torch.ones(1024) if importance is None else importance
    ratio = float((counted * (ours - weight).square()).sum() / (counted * (theirs - weight).square()).sum())
    assert ratio == pytest.approx(1.0, abs=0.01)
    if not weighted:
        assert float((ours == theirs).float().mean()) > 0.85
