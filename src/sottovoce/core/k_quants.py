"""ggml's K-quants: 256 columns share a float16 scale `d` (and `dmin`); 16 or 32 of them a small whole number that multiplies it.

    Q2_K, Q4_K, Q5_K:  value = (d * sub_scale) * q - (dmin * sub_minimum)
    Q3_K, Q6_K:        value = (d * sub_scale) * (q - offset),  sub_scale signed

The products are taken in this order, in float32, as ggml and the package `gguf` do, so that a file decodes to the very same values
(ggml-quants.c, `dequantize_row_q2_K` and its like).

Without an importance the fit is ggml's reference: `make_qkx2_quants` for sub-blocks with a minimum, `make_q3_quants` for Q3_K,
`make_qx_quants` for Q6_K, and the super-block's scale from the largest. With one it is that of an importance matrix: errors weighted by
`importance * sqrt(sigma^2 + x^2)`, a finer search, and the super-block's scale from a weighted search (ggml weights Q6_K by the importance
alone, which changes its error by less than 0.2 %). GPTQ may choose sub-scales again on compensated weights (`adapt`), and fit `d` and
`dmin` again to the codes in closed form (`refit`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sottovoce.core.float16 import finite_float16
from sottovoce.core.number_format import NumberFormat, Parameters, tensor_named
from sottovoce.core.scale_refit import refit_linear
from sottovoce.errors import CheckpointError, RecipeError

SUPER_BLOCK = 256
KType = Literal["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
LARGEST_CHANGE = 2.0  # a refit that changes a scale by more is not taken


class _Layout(NamedTuple):
    bits: int
    part: int  # columns of a sub-block
    lowest: int  # sub-scale
    highest: int  # sub-scale; of sub-minima, too
    offset: int  # of codes without a minimum; 0: there is a minimum
    bytes: int  # of a super-block


LAYOUTS: dict[str, _Layout] = {
    "Q2_K": _Layout(2, 16, 0, 15, 0, 84),
    "Q3_K": _Layout(3, 16, -32, 31, 4, 110),
    "Q4_K": _Layout(4, 32, 0, 63, 0, 144),
    "Q5_K": _Layout(5, 32, 0, 63, 0, 176),
    "Q6_K": _Layout(6, 16, -128, 127, 32, 210),
}


class _Search(NamedTuple):
    """Inverse scales tried: (first + step * i + largest code) / range; `absolute`: by the sum of absolute errors."""

    first: float
    step: float
    steps: int
    absolute: bool = False


REFERENCE_SEARCH = {2: _Search(-0.5, 0.1, 15, absolute=True), 4: _Search(-1.0, 0.1, 20), 5: _Search(-0.5, 0.1, 15)}
WEIGHTED_SEARCH = _Search(-0.9, 0.05, 36)


@dataclass(frozen=True, kw_only=True)
class KQuant(NumberFormat):
    """One of ggml's K-quants."""

    name: ClassVar[str] = "k-quant"
    refit_bits: ClassVar[int] = 6
    even: ClassVar[bool] = True
    factors: ClassVar[tuple[str, ...]] = ("scale", "minimum")  # the second where sub-blocks have minima

    type: KType = "Q4_K"

    def __post_init__(self) -> None:
        if self.type not in get_args(KType):
            raise RecipeError(f"type {self.type!r} is not a K-quant; choose one of {', '.join(get_args(KType))}")

    @property
    def layout(self) -> _Layout:
        """Sizes and ranges of this type."""
        return LAYOUTS[self.type]

    @property
    def has_minimum(self) -> bool:
        """Whether sub-blocks have a minimum."""
        return not self.layout.offset

    @property
    def code_bits(self) -> int:
        return self.layout.bits

    @property
    def title(self) -> str:
        return self.type

    @property
    def levels(self) -> str:
        kind = "minimum" if self.has_minimum else "signed scale"
        return f"{1 << self.code_bits} in even steps, {kind} per {self.layout.part}"

    def block_size(self, in_features: int) -> int:
        if in_features % SUPER_BLOCK:
            raise RecipeError(f"{self.type} wants rows of a multiple of {SUPER_BLOCK}, not of {in_features}")
        return SUPER_BLOCK

    def bits_per_weight(self, in_features: int) -> float:
        return self.layout.bytes * 8 / self.block_size(in_features)

    def part_size(self, in_features: int) -> int:
        del in_features
        return self.layout.part

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        """Fit `scale` `[..., out, blocks]` and whole `sub_scale` `[..., out, parts]`; with minima `minimum` and `sub_minimum`, too."""
        self.block_size(weight.shape[-1])
        x = weight.float().reshape(*weight.shape[:-1], -1, SUPER_BLOCK // self.layout.part, self.layout.part)
        weights = self._weights(x, importance)
        per_part = weights.sum(-1)
        if not self.has_minimum:
            by_code = importance is None and self.code_bits == 3
            steps = (_fit_code_by_code if by_code else _symmetric_fit)(x, weights, self.layout.offset)
            scale, sub = self._signed_super(steps, None if importance is None else per_part)
            return {"scale": scale, "sub_scale": sub.flatten(-2)}
        search = WEIGHTED_SEARCH if importance is not None else REFERENCE_SEARCH[self.code_bits]
        steps, lows = _line_fit(x, weights, (1 << self.code_bits) - 1, search)
        scale, sub = self._positive_super(steps, None if importance is None else per_part)
        minimum, sub_minimum = self._positive_super(lows, None if importance is None else per_part)
        return {"scale": scale, "sub_scale": sub.flatten(-2), "minimum": minimum, "sub_minimum": sub_minimum.flatten(-2)}

    def _weights(self, x: Tensor, importance: Tensor | None) -> Tensor:
        """What an error in each weight counts, `[..., blocks, parts, columns]`."""
        if importance is not None:
            sigma = x.square().mean((-1, -2), keepdim=True) * (1 if self.code_bits in (2, 6) else 2)
            return importance.float().reshape(x.shape[-3:]) * (sigma + x.square()).sqrt()
        if not self.has_minimum:
            return x.square()
        return x.abs() if self.code_bits == 2 else x.square().mean(-1, keepdim=True).sqrt() + x.abs()

    def _positive_super(self, values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """A float16 scale `[..., blocks]` and whole numbers `[..., blocks, parts]` for positive `values`."""
        most = values.amax(-1, keepdim=True)
        best = finite_float16(most / self.layout.highest)
        if weights is not None:
            best = self._searched(values, most, weights, best)
        return best.squeeze(-1), self._whole(values, best)

    def _signed_super(self, values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        most = torch.gather(values, -1, values.abs().argmax(-1, keepdim=True))
        best = finite_float16(most / self.layout.lowest)
        if weights is not None:
            best = self._searched(values, most, weights, best)
        return best.squeeze(-1), self._whole(values, best)

    def _searched(self, values: Tensor, most: Tensor, weights: Tensor, first: Tensor) -> Tensor:
        """Of super-block scales near the one that spans `most`, that with the least weighted error of the sub-scales."""
        best, least = first, torch.full_like(most, float("inf"))
        ends = [self.layout.highest] if self.has_minimum else [self.layout.lowest, self.layout.highest]
        for end in ends:
            for i in range(-4, 5):
                tried = finite_float16(most / (end * (1 + 0.1 * i / abs(end))))
                error = (weights * (tried * self._whole(values, tried) - values).square()).sum(-1, keepdim=True)
                best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
        return best

    def _whole(self, values: Tensor, scale: Tensor) -> Tensor:
        return torch.where(scale != 0, torch.round(values / scale), 0.0).clamp(self.layout.lowest, self.layout.highest)

    def adapt(self, weight: Tensor, parameters: Parameters, importance: Tensor) -> dict[str, Tensor]:
        """Choose the sub-scale (and sub-minimum) of one sub-block again: near a fit to it, or as it was, by the least weighted error."""
        scale = parameters["scale"]
        weights = importance.float().unsqueeze(-2).expand(weight.shape)
        tried: Iterator[dict[str, Tensor]]
        if self.has_minimum:
            steps, lows = _line_fit(weight, weights, (1 << self.code_bits) - 1, WEIGHTED_SEARCH)
            near = self._whole(steps.unsqueeze(-1), scale), self._whole(lows.unsqueeze(-1), parameters["minimum"])
            top = self.layout.highest
            tried = (
                {"sub_scale": (near[0] + i).clamp(0, top), "sub_minimum": (near[1] + j).clamp(0, top)}
                for i in (0, -1, 1)
                for j in (0, -1, 1)
            )
        else:
            step = _symmetric_fit(weight, weights, self.layout.offset).unsqueeze(-1)
            signed = (self._whole(sign * step, scale) + i for sign in (1, -1) for i in (0, -1, 1))
            tried = ({"sub_scale": sub.clamp(self.layout.lowest, self.layout.highest)} for sub in signed)
        names = ("sub_scale", "sub_minimum") if self.has_minimum else ("sub_scale",)
        best = {name: parameters[name] for name in names}
        least = self._part_error(weight, {**parameters, **best}, weights)
        for candidate in tried:
            error = self._part_error(weight, {**parameters, **candidate}, weights)
            better = error < least
            least = torch.where(better, error, least)
            best = {name: torch.where(better, candidate[name], best[name]) for name in names}
        return best

    def _part_error(self, weight: Tensor, parameters: Parameters, weights: Tensor) -> Tensor:
        return (weights * (self.decode(self.encode(weight, parameters), parameters) - weight).square()).sum(-1, keepdim=True)

    def expand(self, parameters: Parameters, in_features: int) -> tuple[Tensor, ...]:
        pairs = [("scale", "sub_scale"), *([("minimum", "sub_minimum")] if self.has_minimum else [])]
        found = []
        for whole, sub in pairs:
            parts = parameters[sub].float()
            product = parameters[whole].float().repeat_interleave(parts.shape[-1] // parameters[whole].shape[-1], -1) * parts
            found.append(product.repeat_interleave(in_features // parts.shape[-1], -1))
        return tuple(found)

    def nearest(self, weight: Tensor, *expanded: Tensor) -> Tensor:
        step, shifted = expanded[0], weight + expanded[1] if self.has_minimum else weight
        codes = torch.where(step != 0, torch.round(shifted / step), 0.0) + self.layout.offset
        return codes.clamp_(0, (1 << self.code_bits) - 1)

    def values(self, codes: Tensor, *expanded: Tensor) -> Tensor:
        return expanded[0] * codes - expanded[1] if self.has_minimum else expanded[0] * (codes - self.layout.offset)

    def refit(self, target: Tensor, codes: Tensor, parameters: Parameters, hessian: Tensor) -> Parameters:
        """Fit the super-blocks' scales (and minima) again, together; sub-scales stay. What would change too much stays, too."""
        size = self.layout.part
        sub = parameters["sub_scale"].float().repeat_interleave(size, -1)
        if not self.has_minimum:
            (fitted,) = refit_linear(target, (sub * (codes - self.layout.offset)).unsqueeze(0), parameters["scale"].unsqueeze(0), hessian)
            return {**parameters, "scale": _near(fitted, parameters["scale"])}
        low = -parameters["sub_minimum"].float().repeat_interleave(size, -1)
        old = torch.stack([parameters["scale"], parameters["minimum"]])
        scale, minimum = refit_linear(target, torch.stack([sub * codes, low]), old, hessian)
        return {**parameters, "scale": _near(scale, old[0]), "minimum": _near(minimum, old[1])}

    def nearest_stored(self, name: str, value: Tensor) -> Tensor:
        del name
        return finite_float16(value)

    def stored(self, parameters: Parameters) -> dict[str, Tensor]:
        kind = torch.uint8 if self.has_minimum else torch.int8
        return {name: value.to(kind) if name.startswith("sub_") else value.half() for name, value in parameters.items()}

    def check(self, parameters: Parameters, out_features: int, in_features: int) -> None:
        """Scales (and minima) are finite float16 `[out, blocks]`; sub-scales (and sub-minima) whole `[out, parts]`, in range."""
        blocks = in_features // self.block_size(in_features)
        for name in ("scale", "minimum") if self.has_minimum else ("scale",):
            tensor, sub = tensor_named(name, parameters), tensor_named(f"sub_{name}", parameters)
            if tensor.dtype != torch.float16 or tensor.shape != (out_features, blocks) or not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; wanted finite float16 {(out_features, blocks)}")
            wanted = (out_features, in_features // self.layout.part)
            kind = torch.uint8 if self.has_minimum else torch.int8
            if sub.dtype != kind or sub.shape != wanted:
                raise CheckpointError(f"sub_{name} is {sub.dtype} {tuple(sub.shape)}; wanted {kind} {wanted}")
            if int(sub.min()) < self.layout.lowest or int(sub.max()) > self.layout.highest:
                raise CheckpointError(f"a sub_{name} is not within {self.layout.lowest} to {self.layout.highest}")


def _near(fitted: Tensor, old: Tensor) -> Tensor:
    """`fitted` as stored where it is near `old`, else `old`."""
    ratio = fitted / old
    return torch.where((ratio > 1 / LARGEST_CHANGE) & (ratio < LARGEST_CHANGE), finite_float16(fitted), old)


def _line_fit(x: Tensor, weights: Tensor, top: int, search: _Search) -> tuple[Tensor, Tensor]:
    """ggml's `make_qkx2_quants` over the last dimension: `x ~ step * q - low`; both at least 0."""
    high, minimum = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).clamp(max=0)
    flat = high <= minimum
    step = torch.where(flat, 0.0, (high - minimum) / top)
    total, total_x = weights.sum(-1, keepdim=True), (weights * x).sum(-1, keepdim=True)

    def loss(by: Tensor, codes: Tensor, low: Tensor) -> Tensor:
        error = by * codes + low - x
        return (weights * (error.abs() if search.absolute else error.square())).sum(-1, keepdim=True)

    def rounded(inverse: Tensor) -> Tensor:
        return torch.round(inverse * (x - minimum)).clamp(0, top)

    least = loss(step, rounded(torch.where(flat, 0.0, top / (high - minimum))), minimum)
    for i in range(search.steps + 1):
        codes = rounded(torch.where(high > minimum, (search.first + search.step * i + top) / (high - minimum), 0.0))
        weighted = weights * codes
        first, second, product = (
            weighted.sum(-1, keepdim=True),
            (weighted * codes).sum(-1, keepdim=True),
            (weighted * x).sum(-1, keepdim=True),
        )
        determinant = total * second - first * first
        by = (total * product - total_x * first) / determinant
        low = (second * total_x - first * product) / determinant
        by, low = torch.where(low > 0, product / second, by), low.clamp(max=0)
        error = loss(by, codes, low)
        better = (determinant > 0) & (error < least)  # NaN is never better
        least, step, minimum = torch.where(better, error, least), torch.where(better, by, step), torch.where(better, low, minimum)
    return step.clamp(min=0).squeeze(-1), -minimum.squeeze(-1)


def _symmetric_fit(x: Tensor, weights: Tensor, offset: int) -> Tensor:
    """ggml's `make_qx_quants` over the last dimension: the signed `step` of `x ~ step * q`, q from -offset to offset - 1."""
    largest = torch.gather(x, -1, x.abs().argmax(-1, keepdim=True))
    usable = largest.abs() > 0
    step, most = torch.zeros_like(largest), torch.zeros_like(largest)
    for i in (0, *(j for j in range(-9, 10) if j)):
        inverse = torch.where(usable, -(offset + 0.1 * i) / largest, 0.0)
        codes = torch.round(inverse * x).clamp(-offset, offset - 1)
        product, square = (weights * x * codes).sum(-1, keepdim=True), (weights * codes * codes).sum(-1, keepdim=True)
        gain = torch.where(square > 0, product * product / square, 0.0)
        better = gain > most
        step, most = torch.where(better, product / square, step), torch.where(better, gain, most)
    return step.squeeze(-1)


def _fit_code_by_code(x: Tensor, weights: Tensor, offset: int) -> Tensor:
    """ggml's `make_q3_quants` over the last dimension: the `step` as in `_symmetric_fit`, found by changing one code after the other.

    From the step that spans the largest value, each code in turn goes to what is best with the others as they are, five rounds at most. As
    in ggml only sub-blocks whose largest value is negative get better: in the others the sums are negative, and it leaves those alone.
    """
    largest = torch.gather(x, -1, x.abs().argmax(-1, keepdim=True))
    codes = torch.round(torch.where(largest != 0, -offset / largest, 0.0) * x).clamp(-offset, offset - 1)
    product, square = (weights * x * codes).sum(-1), (weights * codes * codes).sum(-1)
    for _ in range(5):
        before = codes.clone()
        for i in range(x.shape[-1]):
            own, code, weight = x[..., i], codes[..., i], weights[..., i]
            others, others_square = product - weight * own * code, square - weight * code * code
            new = torch.where(others > 0, torch.round(own * others_square / others), code).clamp(-offset, offset - 1)
            with_new, new_square = others + weight * own * new, others_square + weight * new * new
            better = (new != code) & (new_square > 0) & (with_new.square() * square > product.square() * new_square)
            codes[..., i] = torch.where(better, new, code)
            product, square = torch.where(better, with_new, product), torch.where(better, new_square, square)
        if torch.equal(codes, before):
            break
    return torch.where(square > 0, product / square, 0.0)
