"""Books of levels against slow references written number by number: nearest level, search of scales, column loop, packing."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.core.error_metrics import output_energy
from sottovoce.core.formats import FORMATS
from sottovoce.core.fp4 import MXFP4, NVFP4
from sottovoce.core.gptq import gptq
from sottovoce.core.iq4 import IQ4NL, IQ4XS
from sottovoce.core.level_book import POLISHES, SHARES, LevelBook
from sottovoce.core.logarithmic import Logarithmic
from sottovoce.core.nf4 import NF4
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.rtn import rtn
from sottovoce.errors import CheckpointError, RecipeError
from tests.conftest import random_moments

BOOKS = [
    IQ4NL(), IQ4XS(), MXFP4(), NVFP4(), NVFP4(tensor_exponent=0), NF4(), NF4(group_size=64),
    Logarithmic(), Logarithmic(steps_per_octave=2), Logarithmic(bits=3, group_size=64), Logarithmic(bits=2),
]  # fmt: skip
FLAT = [book for book in BOOKS if not isinstance(book, IQ4XS)]


def title(book: NumberFormat) -> str:
    return book.title


def slow_code(weight: float, scale: float, levels: tuple[float, ...]) -> int:
    """The first code whose level is nearest to the weight in units of the scale."""
    ratio = weight / scale if scale else weight
    return min(range(len(levels)), key=lambda code: (abs(ratio - levels[code]), levels[code]))


def slow_error(block: list[float], scale: float, book: LevelBook, weights: list[float]) -> float:
    values = [book.table[slow_code(w, scale, book.table)] * scale for w in block]
    return sum(u * abs(v - w) ** 2.4 for u, v, w in zip(weights, values, block, strict=True))


def slow_scales(block: list[float], book: LevelBook, weights: list[float]) -> list[float]:
    """Every scale that the search tries, in its order, for a single block."""

    def stored(scale: float) -> float:
        return float(book.storable(torch.tensor(scale)))

    top, bottom = max(book.table), min(book.table)
    high, low = max(0.0, *block), min(0.0, *block)
    tried = []
    for sign in (1,) if set(book.table) == {-level for level in book.table} else (1, -1):
        spanning = max(high / top, low / bottom) if sign > 0 else -max(-low / top, -high / bottom)
        if isinstance(book, MXFP4):
            middle = stored(spanning)
            tried += [middle, middle / 2, middle * 2]
        else:
            tried += [stored(spanning * share) for share in SHARES]
    for _ in range(POLISHES):
        best = min(tried, key=lambda scale: slow_error(block, scale, book, weights))
        levels = [book.table[slow_code(w, best, book.table)] for w in block]
        size = sum(u * level * level for u, level in zip(weights, levels, strict=True))
        if size > 0:
            tried.append(stored(sum(u * level * w for u, level, w in zip(weights, levels, block, strict=True)) / size))
    return tried


@pytest.mark.parametrize("book", BOOKS, ids=title)
def test_nearest_is_the_nearest_of_all_levels(book: LevelBook) -> None:
    torch.manual_seed(0)
    weight, scale = torch.randn(200) * 3, torch.randn(200)
    scale[:5] = 0
    codes = book.nearest(weight, scale)
    for w, d, code in zip(weight.tolist(), scale.tolist(), codes.int().tolist(), strict=True):
        ratio = w / d if d else w
        assert abs(ratio - book.table[code]) <= min(abs(ratio - level) for level in book.table) * (1 + 1e-5)
    assert book.nearest(torch.tensor([0.0, -0.0]), torch.ones(2)).tolist() == [slow_code(0.0, 1.0, book.table)] * 2


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("book", FLAT, ids=title)
def test_search_equals_the_slow_one(book: LevelBook, weighted: bool) -> None:
    torch.manual_seed(1)
    weight = torch.randn(3, 2 * book.block) * 0.05
    weight[0, 3], weight[1, : book.block] = 0.9, 0.0
    importance = torch.rand(2 * book.block) + 0.1 if weighted else None
    found = book.fit(weight, importance)["scale"]
    for row, i in product(range(3), range(2)):
        here = slice(i * book.block, (i + 1) * book.block)
        block = weight[row, here].tolist()
        weights = [1.0] * book.block if importance is None else importance[here].tolist()
        least = min(slow_error(block, scale, book, weights) for scale in slow_scales(block, book, weights))
        assert slow_error(block, float(found[row, i]), book, weights) == pytest.approx(least, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("book", BOOKS, ids=title)
def test_zeros_stay_zeros_and_a_scale_is_as_stored(book: LevelBook) -> None:
    torch.manual_seed(2)
    weight = torch.randn(4, 256)
    weight[:, 32:64] = 0
    weight[3] = 0
    fitted = book.fit(weight)
    quantized = QuantizedTensor.from_codes(book.encode(weight, fitted), fitted, book)
    again = book.decode(quantized.codes, quantized.parameters)
    assert torch.equal(again, book.decode(book.encode(weight, fitted), fitted))
    assert not bool(again[3].any())
    assert bool((again[:, 32:64] == 0).all()) or book.block > 32


def test_worked_examples() -> None:
    iq4 = torch.tensor([[-127.0, 113.0, 1.0, 13.0] + [25.0] * 28]) * 0.5
    assert torch.equal(rtn(iq4, IQ4NL()).dequantize(), iq4)
    turned = rtn(-iq4, IQ4NL())
    assert torch.equal(turned.dequantize(), -iq4)  # by a negative scale
    assert float(turned.parameters["scale"]) == -0.5
    e2m1 = torch.tensor([[6.0, -0.5, 2.0, 0.0, 1.4] + [0.0] * 27]) * 2.0**-7
    quantized = rtn(e2m1, MXFP4())
    assert quantized.codes[0, :5].tolist() == [7, 9, 4, 0, 3]
    assert quantized.parameters["scale"].tolist() == [[127 - 7]]
    half = rtn(torch.tensor([[1.0, -0.7, 0.5, 0.0] + [0.1] * 28]), Logarithmic(steps_per_octave=2))
    torch.testing.assert_close(half.dequantize()[0, :4], torch.tensor([1.0, -math.sqrt(0.5), 0.5, 0.0]), rtol=0.03, atol=0)


def test_e4m3_scales_need_the_factor_of_the_tensor() -> None:
    """Scales of small weights fall below the normal E4M3 numbers, unless a factor of the tensor lifts them."""
    torch.manual_seed(3)
    weight = torch.randn(64, 256) * 0.01
    errors = [float((rtn(weight, NVFP4(tensor_exponent=e)).dequantize() - weight).square().sum()) for e in (-8, 0)]
    assert errors[0] < 0.8 * errors[1]


def test_iq4_xs_is_the_best_of_its_neighbors() -> None:
    """No other sub-scale next to the one chosen has a smaller error, and every sub-scale is a stored one."""
    torch.manual_seed(4)
    weight = torch.randn(3, 512) * torch.rand(3, 16).repeat_interleave(32, -1)
    importance = torch.rand(512) + 0.1
    book = IQ4XS()
    fitted = book.fit(weight, importance)
    assert bool((fitted["sub_scale"] == fitted["sub_scale"].round()).all())

    def error(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        rounded = book.decode(book.encode(weight, parameters), parameters)
        return ((rounded - weight).abs().pow(2.4) * importance).reshape(3, 16, 32).sum(-1)

    least = error(fitted)
    for step in (-1, 1):
        other = {**fitted, "sub_scale": (fitted["sub_scale"] + step).clamp(-32, 31)}
        assert bool((least <= error(other) * (1 + 1e-4)).all())
    coarse = rtn(weight, IQ4NL()).dequantize()
    assert float((rtn(weight, book).dequantize() - weight).square().sum()) < 1.1 * float((coarse - weight).square().sum())


def slow_gptq(weight: torch.Tensor, hessian: torch.Tensor, book: NumberFormat, damping: float, act_order: bool) -> torch.Tensor:
    """The column loop with an explicit inverse, derived anew for what is left; parameters expanded for every weight."""
    weight, n = weight.double().clone(), weight.shape[1]
    size = book.block_size(n)
    hessian = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(n)
    columns = sorted(range(n), key=lambda j: (-float(hessian[j, j]), j)) if act_order else list(range(n))
    scale = book.expand(book.fit(weight.float()), n)[0].clone() if act_order else torch.zeros(weight.shape)
    result = torch.zeros_like(weight)
    for done, i in enumerate(columns):
        if not act_order and i % size == 0:
            scale[:, i : i + size] = book.expand(book.fit(weight[:, i : i + size].float()), size)[0]
        left = columns[done:]
        inverse = torch.linalg.inv(hessian[left][:, left])
        for row in range(len(weight)):
            d = float(scale[row, i])
            result[row, i] = book.table[slow_code(float(weight[row, i]), d, book.table)] * d  # type: ignore[attr-defined]
        error = (weight[:, i] - result[:, i]) / inverse[0, 0]
        weight[:, left[1:]] -= error[:, None] * inverse[0, 1:]
    return result


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("book", [IQ4NL(), MXFP4(), NVFP4(), Logarithmic(bits=3)], ids=title)
def test_column_loop_equals_the_slow_one(book: LevelBook, act_order: bool) -> None:
    moments, _, _ = random_moments(64, seed=5, n=200)
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(7))
    fast = gptq(weight, moments.hessian, book, damping=0.05, act_order=act_order).weight.dequantize().double()
    slow = slow_gptq(weight, moments.hessian.matrix, book, 0.05, act_order)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("book", [IQ4NL(), IQ4XS(), MXFP4(), NVFP4(), Logarithmic(bits=2)], ids=title)
def test_calibration_and_refits_lower_the_output_error(book: LevelBook) -> None:
    width = max(64, book.block)
    moments, _, _ = random_moments(width, seed=6, n=3 * width)
    weight = torch.randn(6, width, generator=torch.Generator().manual_seed(8))
    hessian = moments.hessian.damped(0.01)

    def error(quantized: QuantizedTensor) -> float:
        return output_energy(weight - quantized.dequantize(), hessian)

    calibrated = gptq(weight, moments.hessian, book, damping=0.01).weight
    refitted = gptq(weight, moments.hessian, book, damping=0.01, scale_refits=3).weight
    assert error(calibrated) < 0.9 * error(rtn(weight, book))
    assert error(refitted) <= error(calibrated)
    assert (error(refitted) < error(calibrated)) == (book.refit(weight, refitted.codes, book.fit(weight), hessian) is not None)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(BOOKS), st.integers(0, 1000), st.integers(1, 3))
def test_packing_is_undone(book: LevelBook, seed: int, blocks: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    quantized = rtn(torch.randn(3, blocks * max(32, book.block), generator=generator), book)
    again = QuantizedTensor.unpack(quantized.pack(), book)
    assert torch.equal(again.codes, quantized.codes)
    assert torch.equal(again.dequantize(), quantized.dequantize())
    bits = 8 * sum(t.nbytes for name, t in quantized.pack().items() if name not in ("weight_shape", "weight_global_scale"))
    wanted = quantized.bits_per_weight + (2 / 32 if isinstance(book, IQ4XS) else 0)  # 6-bit sub-scales lie in bytes here
    assert bits == pytest.approx(wanted * quantized.codes.numel(), rel=0.01 if book.code_bits != 3 else 0.2)


@pytest.mark.parametrize(
    ("book", "name", "value", "message"),
    [
        (IQ4NL(), "scale", torch.full((3, 8), float("nan"), dtype=torch.float16), "not a finite number"),
        (IQ4NL(), "scale", torch.ones(3, 8), "wanted torch.float16"),
        (IQ4NL(), "zero", torch.ones(3, 8), "'zero' is there"),
        (IQ4XS(), "sub_scale", torch.full((3, 8), 32, dtype=torch.int8), "not within -32 .. 31"),
        (IQ4XS(), "sub_scale", torch.zeros(3, 4, dtype=torch.int8), "wanted torch.int8"),
        (IQ4XS(), "scale", torch.full((3, 1), float("inf"), dtype=torch.float16), "not a finite number"),
        (MXFP4(), "scale", torch.full((3, 8), 255, dtype=torch.uint8), "not within 32 .. 222"),
        (NVFP4(), "scale", torch.full((3, 16), float("nan")).to(torch.float8_e4m3fn), "not a positive finite number"),
        (NVFP4(), "scale", torch.zeros(3, 16).to(torch.float8_e4m3fn), "not a positive finite number"),
        (NF4(), "scale", torch.ones(3, 4, dtype=torch.float16), "wanted torch.float16"),
    ],
)
def test_damage_is_found(book: LevelBook, name: str, value: torch.Tensor, message: str) -> None:
    quantized = rtn(torch.randn(3, 256), book)
    with pytest.raises(CheckpointError, match=message):
        QuantizedTensor(quantized.codes, {**quantized.parameters, name: value}, book)


def test_foreign_tensors_are_refused() -> None:
    packed = rtn(torch.randn(3, 64), NVFP4()).pack()
    for changes, message in (
        ({"weight_global_scale": torch.tensor([3.0])}, "weight_global_scale"),
        ({"weight_packed": packed["weight_packed"].int()}, "wanted uint8"),
        ({"weight_zero_point": torch.ones(1)}, "'weight_zero_point' is there"),
    ):
        with pytest.raises(CheckpointError, match=message):
            QuantizedTensor.unpack({**packed, **changes}, NVFP4())


@pytest.mark.parametrize(
    ("kind", "settings_"),
    [
        (NF4, {"group_size": 16}),
        (NVFP4, {"tensor_exponent": 40}),
        (Logarithmic, {"bits": 5}),
        (Logarithmic, {"steps_per_octave": 3}),
        (Logarithmic, {"group_size": 7}),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[NumberFormat], settings_: dict[str, int]) -> None:
    assert FORMATS[kind.name] is kind
    with pytest.raises(RecipeError, match="out of range|not supported"):
        kind(**settings_)


@pytest.mark.parametrize("book", BOOKS, ids=title)
def test_rows_that_blocks_do_not_divide_are_refused(book: LevelBook) -> None:
    with pytest.raises(RecipeError, match=f"blocks of {book.block} do not divide a row of {book.block + 8}"):
        book.block_size(book.block + 8)
