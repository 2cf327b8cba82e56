"""Books of levels: a code stands for one of a few fixed levels, times a scale for each block of neighboring weights.

    value = level[code] * scale

A weight `w` in a block of scale `d` gets the code whose level is nearest to `w / d`, found among the midpoints between neighboring
levels. A scale is searched over shares of the scale that spans the block, with both signs where the levels are not symmetric, and
then fitted once more to the codes it gave (least squares, `d = sum(u w v) / sum(u v^2)` for levels `v` and weights of columns `u`).
What is tried is always a number that files store, so that codes are rounded against the very scale that is read back.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sottovoce.core.affine import SEARCH_NORM
from sottovoce.core.float16 import positive_float16
from sottovoce.core.number_format import NumberFormat, Parameters, tensor_named
from sottovoce.core.pieces import fit_in_pieces
from sottovoce.core.scale_refit import POLISHES, polish_scales, refit_group_scales
from sottovoce.errors import CheckpointError, RecipeError

# Shares of the spanning scale that are tried. Above 1, the weights of a block lie between inner levels, which are closer.
SHARES = tuple(1.2 - 0.04 * i for i in range(20))


class Book(NamedTuple):
    """Levels on a device: `levels` by code; `ordered`: the distinct ones, sorted, with their `codes`; `midpoints` between those."""

    levels: Tensor
    ordered: Tensor
    codes: Tensor
    midpoints: tuple[float, ...]

    def rank(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return the places among `ordered` of the levels nearest to `weight / scale` (shapes that broadcast), int64."""
        ratio = weight / torch.where(scale == 0, 1.0, scale)
        above, rank = torch.empty_like(ratio), torch.zeros_like(ratio)
        for midpoint in self.midpoints:  # four times as fast as torch.bucketize for 16 levels
            rank += torch.gt(ratio, midpoint, out=above)
        return rank.long()


@lru_cache(maxsize=64)
def book_of(levels: tuple[float, ...], device: torch.device) -> Book:
    """Sort `levels`. Of equal ones (0 and -0) only the first is ever chosen."""
    chosen = sorted({level: code for code, level in reversed(list(enumerate(levels)))}.items())
    ordered = [level for level, _ in chosen]
    codes = torch.tensor([float(code) for _, code in chosen])
    midpoints = tuple((a + b) / 2 for a, b in pairwise(ordered))
    return Book(torch.tensor(levels).to(device), torch.tensor(ordered).to(device), codes.to(device), midpoints)


class LevelBook(NumberFormat):
    """A book of levels with one scale for each block. Subclasses name the levels, the block, and how a scale is stored."""

    @property
    @abstractmethod
    def table(self) -> tuple[float, ...]:
        """What each code stands for at scale 1."""

    @property
    @abstractmethod
    def block(self) -> int:
        """Columns that share a scale."""

    @abstractmethod
    def storable(self, scale: Tensor) -> Tensor:
        """Return the nearest scales that a file holds, float32; a scale of 0 stands for a block of zeros."""

    @property
    def code_bits(self) -> int:
        return (len(self.table) - 1).bit_length()

    @property
    def levels(self) -> str:
        return f"{len(set(self.table))} of a book"

    @property
    def symmetric(self) -> bool:
        """Whether every level has its negative, so that the sign of a scale does not matter."""
        return set(self.table) == {-level for level in self.table}

    def block_size(self, in_features: int) -> int:
        if in_features % self.block:
            raise RecipeError(f"blocks of {self.block} do not divide a row of {in_features}, as {self.title} wants")
        return self.block

    def nearest(self, weight: Tensor, *expanded: Tensor) -> Tensor:
        book = book_of(self.table, weight.device)
        return book.codes[book.rank(weight, expanded[0])]

    def values(self, codes: Tensor, *expanded: Tensor) -> Tensor:
        return book_of(self.table, codes.device).levels[codes.long()] * expanded[0]

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        """Fit `scale` `[..., out, blocks]`, a stored number."""
        size = self.block_size(weight.shape[-1])
        blocks = weight.float().reshape(*weight.shape[:-1], -1, size)
        return {"scale": self.search(blocks, None if importance is None else importance.float().reshape(-1, size))}

    def search(self, blocks: Tensor, weights: Tensor | None) -> Tensor:
        """Return the scales `[..., blocks]` with the least rounding error of `blocks` `[..., blocks, size]`, columns weighted."""
        (scale,) = fit_in_pieces(lambda rows: (self._search_rows(rows, weights),), blocks, 2 if weights is None else weights.dim())
        return scale

    def _search_rows(self, blocks: Tensor, weights: Tensor | None) -> Tensor:
        tried = torch.stack(list(self.candidates(blocks)))
        least, which = self.rounding_error(blocks, tried, weights).min(0)  # of equal ones the first
        best = tried.gather(0, which.unsqueeze(0))[0]
        for _ in range(POLISHES):
            book = book_of(self.table, blocks.device)
            level = book.ordered[book.rank(blocks, best.unsqueeze(-1))]
            scale = self.storable(polish_scales(blocks, level, best, weights))
            error = self.rounding_error(blocks, scale, weights)
            better = error < least
            best, least = torch.where(better, scale, best), torch.where(better, error, least)
        return best

    def candidates(self, blocks: Tensor) -> Iterator[Tensor]:
        """Scales to try for `blocks` `[..., size]`."""
        low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
        bottom, top = min(self.table), max(self.table)
        for sign in (1.0,) if self.symmetric else (1.0, -1.0):
            spanning = torch.maximum(high / top, low / bottom) if sign > 0 else -torch.maximum(-low / top, -high / bottom)
            yield from self.shares(spanning)

    def shares(self, spanning: Tensor) -> Iterator[Tensor]:
        """Stored scales to try in place of the one that spans the block."""
        for share in SHARES:
            yield self.storable(spanning * share)

    def rounding_error(self, blocks: Tensor, scale: Tensor, weights: Tensor | None) -> Tensor:
        """Sum over each block of |w - rounded w|^2.4; `[..., blocks]`."""
        book, wide = book_of(self.table, blocks.device), scale.unsqueeze(-1)
        error = book.ordered[book.rank(blocks, wide)].mul_(wide).sub_(blocks).abs_().pow_(SEARCH_NORM)
        if weights is not None:
            error *= weights
        return error.sum(-1)

    def expand(self, parameters: Parameters, in_features: int) -> tuple[Tensor, ...]:
        return (parameters["scale"].float().repeat_interleave(self.block_size(in_features), -1),)

    def refit(self, target: Tensor, codes: Tensor, parameters: Parameters, hessian: Tensor) -> Parameters | None:
        """Fit the scales again; their signs stay."""
        basis = book_of(self.table, codes.device).levels[codes.long()]
        return {**parameters, "scale": self.storable(refit_group_scales(target, basis, parameters["scale"], hessian))}

    def check_scale(self, parameters: Parameters, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """Return the tensor `scale`, the only parameter. Raises `CheckpointError` for another name, dtype or shape."""
        scale = tensor_named("scale", parameters)
        if extra := sorted(parameters.keys() - {"scale"}):
            raise CheckpointError(f"a tensor {extra[0]!r} is there, which {self.title!r} does not have")
        if scale.dtype != dtype or scale.shape != tuple(shape):
            raise CheckpointError(f"scale {scale.dtype} {tuple(scale.shape)}; wanted {dtype} {tuple(shape)}")
        return scale


class Float16Scale(LevelBook):
    """A book of levels whose scales are float16 numbers. A scale of 0 makes a block of zeros, where no level is 0."""

    factors: ClassVar[tuple[str, ...]] = ("scale",)

    def bits_per_weight(self, in_features: int) -> float:
        return self.code_bits + 16 / self.block_size(in_features)

    def storable(self, scale: Tensor) -> Tensor:
        return float16_scale(scale)

    def nearest_stored(self, name: str, value: Tensor) -> Tensor:
        del name
        return self.storable(value)

    def stored(self, parameters: Parameters) -> dict[str, Tensor]:
        return {"scale": parameters["scale"].half()}

    def check(self, parameters: Parameters, out_features: int, in_features: int) -> None:
        """Scales are float16 `[out, blocks]` and finite."""
        scale = self.check_scale(parameters, torch.float16, (out_features, in_features // self.block_size(in_features)))
        if not bool(torch.isfinite(scale).all()):
            raise CheckpointError("a scale is not a finite number")


def float16_scale(scale: Tensor) -> Tensor:
    """Return the nearest float16 numbers as float32, finite, and 0 for 0 only."""
    stored = positive_float16(scale.abs()).copysign(scale)
    return torch.where(scale == 0, 0.0, stored)
