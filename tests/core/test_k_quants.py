"""K-quants: layouts against the package gguf, fits and column loop against slow references, and the order of the methods."""

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from sottovoce.backends.ggml_blocks import to_blocks
from sottovoce.core.affine_minimum import AffineMinimum
from sottovoce.core.error_metrics import output_energy
from sottovoce.core.gptq import gptq
from sottovoce.core.hessian import Hessian
from sottovoce.core.k_quants import LAYOUTS, KQuant
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.rtn import rtn
from sottovoce.core.scale_refit import refit_group_scales, refit_linear
from sottovoce.errors import CheckpointError, RecipeError


def decoded(weight: QuantizedTensor) -> np.ndarray:
    kind, blocks = to_blocks("w", weight)
    return gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])


def random_k(kind: str, seed: int) -> QuantizedTensor:
    """Any codes, any sub-scales, any float16 scales: also what no fit gives."""
    random, layout, rows, blocks = np.random.default_rng(seed), LAYOUTS[kind], 3, 2
    number_format = KQuant(type=kind)  # type: ignore[arg-type]
    codes = torch.from_numpy(random.integers(0, 1 << layout.bits, (rows, 256 * blocks)).astype(np.uint8))
    parts = 256 * blocks // layout.part
    parameters = {}
    for name in ("scale", "minimum") if number_format.has_minimum else ("scale",):
        parameters[name] = torch.from_numpy(random.normal(size=(rows, blocks))).half()
        whole = random.integers(layout.lowest, layout.highest + 1, (rows, parts))
        parameters[f"sub_{name}"] = torch.from_numpy(whole).to(torch.uint8 if number_format.has_minimum else torch.int8)
    return QuantizedTensor(codes, parameters, number_format)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", LAYOUTS)
def test_random_blocks_decode_to_the_very_same_numbers(kind: str, seed: int) -> None:
    weight = random_k(kind, seed)
    assert np.array_equal(decoded(weight), weight.dequantize().numpy())
    assert torch.equal(QuantizedTensor.unpack(weight.pack(), weight.format).dequantize(), weight.dequantize())


@pytest.mark.parametrize("bits", [4, 5])
def test_simple_blocks_with_a_minimum(bits: int) -> None:
    weight = torch.randn(5, 96, generator=torch.Generator().manual_seed(bits))
    weight[0], weight[1] = 0, 3.0
    weight[2] += 7
    quantized = rtn(weight, AffineMinimum(bits=bits))
    assert np.array_equal(decoded(quantized), quantized.dequantize().numpy())
    assert torch.equal(quantized.dequantize()[1], weight[1])
    # A minimum that is no whole number of steps follows weights far from zero.
    assert float((quantized.dequantize()[2] - weight[2]).abs().max()) < 6 / ((1 << bits) - 1)


def slow_line(x: list[float], w: list[float], top: int, first: float, step: float, steps: int, absolute: bool) -> tuple[float, float]:
    """`make_qkx2_quants` of ggml-quants.c, number by number."""
    low, high = min([0.0, *x]), max(x)
    if high <= low:
        return 0.0, -low

    def codes(inverse: float) -> list[int]:
        return [min(max(round(inverse * (v - low)), 0), top) for v in x]

    def error(scale: float, minimum: float, q: list[int]) -> float:
        return sum(
            b * (abs(scale * c + minimum - v) if absolute else (scale * c + minimum - v) ** 2) for v, b, c in zip(x, w, q, strict=True)
        )

    scale = (high - low) / top
    best = error(scale, low, codes(top / (high - low)))
    for i in range(steps + 1):
        q = codes((first + step * i + top) / (high - low))
        sl, sl2 = sum(b * c for b, c in zip(w, q, strict=True)), sum(b * c * c for b, c in zip(w, q, strict=True))
        sx, sxl = sum(b * v for b, v in zip(w, x, strict=True)), sum(b * c * v for b, c, v in zip(w, q, x, strict=True))
        d = sum(w) * sl2 - sl * sl
        if d <= 0:
            continue
        by, minimum = (sum(w) * sxl - sx * sl) / d, (sl2 * sx - sl * sxl) / d
        if minimum > 0:
            by, minimum = sxl / sl2, 0.0
        if (now := error(by, minimum, q)) < best:
            best, scale, low = now, by, minimum
    return scale, -low


@pytest.mark.parametrize(
    ("kind", "settings"), [("Q2_K", (-0.5, 0.1, 15, True)), ("Q4_K", (-1.0, 0.1, 20, False)), ("Q5_K", (-0.5, 0.1, 15, False))]
)
def test_the_unweighted_fit_is_ggmls(kind: str, settings: tuple[float, float, int, bool]) -> None:
    weight = torch.randn(1, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    number_format, layout = KQuant(type=kind), LAYOUTS[kind]  # type: ignore[arg-type]
    fitted = []
    for part in weight[0].reshape(-1, layout.part).double().tolist():
        mean = 0.0 if kind == "Q2_K" else (sum(v * v for v in part) / len(part)) ** 0.5
        fitted.append(slow_line(part, [mean + abs(v) for v in part], (1 << layout.bits) - 1, *settings))
    got = number_format.fit(weight)
    for name, values in (("", [s for s, _ in fitted]), ("minimum", [m for _, m in fitted])):
        whole, sub = ("minimum", "sub_minimum") if name else ("scale", "sub_scale")
        d = torch.tensor(max(values) / layout.highest).half().float()
        assert float(got[whole]) == pytest.approx(float(d), rel=1e-3)
        assert [round(v / float(d)) for v in values] == got[sub][0].int().tolist()


def slow_signed(x: list[float], w: list[float], offset: int) -> float:
    """The step of `make_qx_quants` of ggml-quants.c, number by number: of 19 roundings the one whose best step leaves least error."""
    extreme = max(x, key=abs)
    if not extreme:
        return 0.0
    step = most = 0.0
    for i in [0, *range(-9, 0), *range(1, 10)]:
        q = [min(max(round(-(offset + 0.1 * i) / extreme * v), -offset), offset - 1) for v in x]
        product, square = sum(b * c * v for b, c, v in zip(w, q, x, strict=True)), sum(b * c * c for b, c in zip(w, q, strict=True))
        if square > 0 and product**2 > most * square:
            step, most = product / square, product**2 / square
    return step


def slow_super(values: list[float], w: list[float], kind: str, ends: list[int]) -> tuple[float, list[int]]:
    """The super-block's scale with the least weighted error of the `values` of its sub-blocks, and their whole numbers."""
    extreme, found = max(values, key=abs), []
    for end in ends:
        for i in range(-4, 5):
            scale = float(np.float16(extreme / (end + 0.1 * i * (1 if end > 0 else -1))))
            q = whole(values, scale, kind)
            found.append((sum(b * (scale * c - v) ** 2 for b, c, v in zip(w, q, values, strict=True)), scale, q))
    _, scale, q = min(found, key=lambda one: one[0])
    return scale, q


def whole(values: list[float], scale: float, kind: str) -> list[int]:
    return [min(max(round(v / scale), LAYOUTS[kind].lowest), LAYOUTS[kind].highest) for v in values]


def uneven(seed: int) -> tuple[Tensor, Tensor]:
    """A row of three super-blocks whose sub-blocks differ in size and in mean, one of them zero; and an importance of its columns."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp(torch.randn(3, 16, 1, generator=generator)) * 0.05
    weight = size * (torch.randn(3, 16, 16, generator=generator) + torch.randn(3, 16, 1, generator=generator))
    weight[1, 4:6] = 0
    return weight.reshape(1, 768), torch.exp(torch.randn(768, generator=generator) * 1.5)


def slow_weights(block: list[float], importance: list[float], kind: str) -> list[float]:
    """`importance * sqrt(sigma^2 + x^2)`; `sigma^2` is the super-block's mean square, doubled for three, four and five bits."""
    square = sum(v * v for v in block) / len(block) * (1 if kind in ("Q2_K", "Q6_K") else 2)
    return [b * (square + v * v) ** 0.5 for v, b in zip(block, importance, strict=True)]


def test_the_unweighted_fit_of_signed_scales_is_ggmls() -> None:
    """Errors count by `x^2`; the super-block's scale gives the largest step the lowest whole number."""
    weight, layout = uneven(0)[0], LAYOUTS["Q6_K"]
    got = KQuant(type="Q6_K").fit(weight)
    for k, block in enumerate(weight.double().reshape(3, 16, 16).tolist()):
        steps = [slow_signed(part, [v * v for v in part], layout.offset) for part in block]
        scale = float(np.float16(max(steps, key=abs) / layout.lowest))
        assert float(got["scale"][0, k]) == scale
        assert got["sub_scale"][0, 16 * k : 16 * (k + 1)].tolist() == whole(steps, scale, "Q6_K")


@pytest.mark.parametrize("seed", [2, 18])  # the ends of the search of scales count in these
@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_fit_with_an_importance_equals_a_slow_one(kind: str, seed: int) -> None:
    weight, importance = uneven(seed)
    number_format, layout = KQuant(type=kind), LAYOUTS[kind]  # type: ignore[arg-type]
    got, parts = number_format.fit(weight, importance), 256 // layout.part
    for k in range(3):
        block = weight[0, 256 * k : 256 * (k + 1)].double().tolist()
        w = slow_weights(block, importance[256 * k : 256 * (k + 1)].double().tolist(), kind)
        pieces = [slice(i, i + layout.part) for i in range(0, 256, layout.part)]
        totals = [sum(w[piece]) for piece in pieces]
        if number_format.has_minimum:
            lines = [slow_line(block[piece], w[piece], (1 << layout.bits) - 1, -0.9, 0.05, 36, False) for piece in pieces]
            wanted = {
                "scale": slow_super([step for step, _ in lines], totals, kind, [layout.highest]),
                "minimum": slow_super([low for _, low in lines], totals, kind, [layout.highest]),
            }
        else:
            steps = [slow_signed(block[piece], w[piece], layout.offset) for piece in pieces]
            wanted = {"scale": slow_super(steps, totals, kind, [layout.lowest, layout.highest])}
        for name, (scale, sub) in wanted.items():
            assert float(got[name][0, k]) == scale
            assert got[f"sub_{name}"][0, parts * k : parts * (k + 1)].tolist() == sub


def problem(width: int = 512, rows: int = 24, seed: int = 0) -> tuple[Tensor, Hessian]:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=generator) / width**0.5
    inputs = torch.randn(1500, width, generator=generator) @ mixed * torch.exp(torch.randn(width, generator=generator) * 0.7)
    return torch.randn(rows, width, generator=generator) * 0.05, Hessian((inputs.T @ inputs).double())


def slow_adaptive(weight: Tensor, hessian: Hessian, number_format: KQuant, parameters: dict[str, Tensor]) -> Tensor:
    """The column loop, column by column: every sub-block's own parameters are chosen again when it comes."""
    n, part = weight.shape[1], number_format.layout.part
    order, u = hessian.columns(True, part), hessian.factor(0.1, True, part)[0].float()
    work, values, parameters = weight[:, order].clone(), torch.zeros_like(weight), {k: v.clone() for k, v in parameters.items()}
    for i in range(n):
        if i % part == 0:
            at = int(order[i]) // part
            own = {name: t[:, [at * t.shape[1] * part // n]] for name, t in parameters.items()}
            importance = u.diagonal()[i : i + part] ** -2
            for name, new in number_format.adapt(work[:, i : i + part], own, importance).items():
                own[name] = new
                parameters[name][:, [at]] = new
            step = number_format.expand(own, part)
        expanded = [t[:, i % part] for t in step]
        value = number_format.values(number_format.nearest(work[:, i], *expanded), *expanded)
        values[:, order[i]] = value
        work[:, i + 1 :] -= ((work[:, i] - value) / u[i, i]).unsqueeze(1) * u[i, i + 1 :]
    return values


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K"])
def test_the_adaptive_column_loop_equals_a_slow_one(kind: str) -> None:
    weight, hessian = problem(rows=4)
    number_format = KQuant(type=kind)  # type: ignore[arg-type]
    parameters = number_format.fit(weight, hessian.importance)
    fast = gptq(weight, hessian, number_format, damping=0.1, parameters=parameters, adaptive=True).weight.dequantize()
    slow = slow_adaptive(weight, hessian, number_format, parameters)
    assert float((fast != slow).float().mean()) < 0.01  # ties in the last digit of a sum


def test_columns_of_a_part_stay_together() -> None:
    _, hessian = problem(256)
    order = hessian.columns(True, 16)
    assert sorted(order.tolist()) == list(range(256))
    assert all(len(set((order[i : i + 16] // 16).tolist())) == 1 for i in range(0, 256, 16))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_each_stage_lowers_the_output_error(kind: str) -> None:
    weight, hessian = problem()
    number_format = KQuant(type=kind)  # type: ignore[arg-type]
    weighted = number_format.fit(weight, hessian.importance)
    results = [
        rtn(weight, number_format),
        rtn(weight, number_format, hessian.importance),
        gptq(weight, hessian, number_format, act_order=False).weight,
        gptq(weight, hessian, number_format, parameters=weighted, adaptive=True, scale_refits=4).weight,
    ]
    for result in results:
        assert np.array_equal(decoded(result), result.dequantize().numpy())
    rounded, importance, public, ours = (output_energy(weight - result.dequantize(), hessian.matrix) for result in results)
    assert importance < rounded
    if kind != "Q2_K":  # with two bits, scales that ignore the inputs cost more than the column loop wins
        assert public < importance
    assert ours < 0.8 * min(public, importance)


def test_a_refit_solves_the_normal_equations() -> None:
    weight, hessian = problem(512, 3)
    number_format: NumberFormat = KQuant(type="Q2_K")
    parameters = number_format.fit(weight)
    codes = number_format.encode(weight, parameters)
    matrix = hessian.damped(0.01)
    sub = parameters["sub_scale"].repeat_interleave(16, -1) * codes
    low = -parameters["sub_minimum"].repeat_interleave(16, -1)
    got = refit_linear(weight, torch.stack([sub, low]), torch.stack([parameters["scale"], parameters["minimum"]]), matrix)
    for row in range(3):
        basis = torch.zeros(4, 512, dtype=torch.float64)
        for k, tensor in enumerate((sub, low)):
            for block in range(2):
                basis[2 * k + block, 256 * block : 256 * (block + 1)] = tensor[row, 256 * block : 256 * (block + 1)].double()
        wanted = torch.linalg.solve(basis @ matrix.double() @ basis.T, basis @ matrix.double() @ weight[row].double())
        torch.testing.assert_close(got[:, row].flatten().double(), wanted, rtol=1e-3, atol=1e-6)
    number_format = KQuant(type="Q3_K")
    parameters = number_format.fit(weight)
    basis = parameters["sub_scale"].repeat_interleave(16, -1) * (number_format.encode(weight, parameters) - 4)
    one = refit_linear(weight, basis.unsqueeze(0), parameters["scale"].unsqueeze(0), matrix)[0]
    torch.testing.assert_close(one, refit_group_scales(weight, basis, parameters["scale"], matrix), rtol=1e-3, atol=1e-6)


def test_zeros_and_huge_values_have_codes() -> None:
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(3))
    weight[0] = 0
    weight[1, 9] = 3000
    weight[2] *= 1e-6
    for kind in LAYOUTS:
        values = rtn(weight, KQuant(type=kind)).dequantize()  # type: ignore[arg-type]
        assert bool(torch.isfinite(values).all())
        assert not values[0].any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="Q4_K wants rows of a multiple of 256, not of 384"):
        rtn(torch.zeros(2, 384), KQuant())
    with pytest.raises(RecipeError, match="'Q7_K' is not a K-quant"):
        KQuant(type="Q7_K")  # type: ignore[arg-type]
    weight = random_k("Q3_K", 0)
    with pytest.raises(CheckpointError, match="a sub_scale is not within -32 to 31"):
        QuantizedTensor(weight.codes, {**weight.parameters, "sub_scale": weight.parameters["sub_scale"] * 0 + 40}, weight.format)
    with pytest.raises(CheckpointError, match="'scale' is missing"):
        QuantizedTensor(weight.codes, {"sub_scale": weight.parameters["sub_scale"]}, weight.format)


@pytest.mark.parametrize("kind", ["Q2_K", "Q4_K"])
def test_what_is_chosen_again_is_near_the_best_of_all_pairs(kind: str) -> None:
    """Of every sub-scale with every sub-minimum, tried one by one."""
    number_format, random = KQuant(type=kind), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
    part, top = number_format.layout.part, number_format.layout.highest
    weight = torch.randn(12, part, generator=random) * 0.05 + 0.02
    importance = torch.rand(part, generator=random) + 0.1
    steps = (weight.amax(-1) - weight.amin(-1)) / ((1 << number_format.code_bits) - 1)
    given = {
        "scale": (steps / (0.7 * top)).half().float().unsqueeze(-1),
        "minimum": (-weight.amin(-1).clamp(max=-1e-3) / (0.4 * top)).half().float().unsqueeze(-1),
    }

    def error(sub_scale: Tensor, sub_minimum: Tensor) -> Tensor:
        parameters = {**given, "sub_scale": sub_scale, "sub_minimum": sub_minimum}
        return (importance * (number_format.decode(number_format.encode(weight, parameters), parameters) - weight).square()).sum(-1)

    start = {name: torch.full((12, 1), float(top // 2)) for name in ("sub_scale", "sub_minimum")}
    chosen = number_format.adapt(weight, {**given, **start}, importance)
    whole = torch.arange(top + 1.0)
    every = torch.stack([error(s.expand(12, 1), m.expand(12, 1)) for s in whole for m in whole])
    found, least = error(**chosen), every.min(0).values
    assert bool((found >= least * (1 - 1e-5)).all())
    assert float(found.sum()) <= 1.1 * float(least.sum())
    assert float(error(**start).sum()) > 1.3 * float(least.sum())


@pytest.mark.parametrize("kind", LAYOUTS)
def test_codes_at_a_step_of_one_and_of_nothing(kind: str) -> None:
    """A sub-block whose sub-scale is 0 has one level only; its codes are those of zero."""
    number_format = KQuant(type=kind)  # type: ignore[arg-type]
    offset, most = number_format.layout.offset, (1 << number_format.code_bits) - 1
    weight = torch.arange(-3.0, 5.0).unsqueeze(0)
    minima = [torch.ones_like(weight)] if number_format.has_minimum else []
    shifted = weight + 1 if minima else weight
    assert torch.equal(number_format.nearest(weight, torch.ones_like(weight), *minima), (shifted + offset).clamp(0, most))
    assert torch.equal(number_format.nearest(weight, torch.zeros_like(weight), *minima), torch.full_like(weight, float(offset)))
