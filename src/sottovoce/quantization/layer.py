"""One layer: from its moments to codes, bias and diagnostics, by the method of the recipe."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sottovoce.core.affine import Grid, fit_scaling
from sottovoce.core.error_metrics import outlier_ratio, relative_output_error, relative_weight_error
from sottovoce.core.fade import CANDIDATES, NO_CORRECTION, CrossFit, calibration_gain, cross_fit, held_out_choice, reliability_score
from sottovoce.core.gptq import gptq
from sottovoce.core.hessian import Hessian
from sottovoce.core.qep import Moments, corrected_target
from sottovoce.core.qtensor import QuantizedTensor, round_to_nearest
from sottovoce.core.rtn import rtn
from sottovoce.models.layers import Layer
from sottovoce.quantization.methods import HELD_OUT, Method
from sottovoce.quantization.statistics import LayerStatistics, MomentViews

CHOICE_ROWS = 64  # output rows on which strength, ridge and damping are chosen
SINGLE_DAMPING = 0.1  # from here on float32 gives the codes of float64 but for some in ten thousand
FIXED_RIDGE = 0.3  # of the rule "diagnostic" where the ridge is to be held out but nothing can be learnt from the folds


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """Diagnostics of one layer; errors are shares of the layer's output energy on the calibration inputs.

    `vulnerability`: RTN's relative weight error (on an even sample of the rows where the method calibrates); `outlier_ratio`: mean
    over groups of max|w| / rms(w). `strength`, `ridge`, `damping`: as used. `held_out_gain`: the output error that the correction
    removes on utterances it was not learnt on.
    `rounded_error`, `added_error`: what RTN and the chosen codes add to the same target. `calibration_gain`,
    `reliability`: see `core.fade`; `reliability` is held out where the folds were used, else in-sample. `inherited_error`:
    what earlier layers' errors do to this layer's output; `outgoing_error`: what leaves it, with its own rounding; both with the error of
    the residual stream it is added to, where the method corrects for that.
    None stands for what a method without calibration data cannot know.
    """

    name: str
    part: str
    bits: int
    group_size: int
    bits_per_weight: float
    weights: int
    vulnerability: float
    outlier_ratio: float
    strength: float = 0.0
    ridge: float | None = None
    damping: float | None = None
    held_out_gain: float | None = None
    rounded_error: float | None = None
    added_error: float | None = None
    calibration_gain: float | None = None
    reliability: float | None = None
    inherited_error: float | None = None
    outgoing_error: float | None = None
    positions: float = 0.0
    dead_columns: int = 0
    bias_absorbed: bool = False


@dataclass(frozen=True, eq=False)
class LayerResult:
    """Codes, the new bias (None: as it was) and the report of one layer."""

    weight: QuantizedTensor
    bias: Tensor | None
    report: LayerReport


def round_layer(layer: Layer, weight: Tensor, grid: Grid) -> LayerResult:
    """Round to nearest, without any data."""
    quantized = rtn(weight, grid)
    vulnerability = relative_weight_error(weight, quantized.dequantize())
    return LayerResult(quantized, None, LayerReport(**_data_free(layer, weight, quantized, vulnerability)))


def quantize_layer(
    layer: Layer,
    weight: Tensor,
    bias: Tensor | None,
    inputs: LayerStatistics,
    grid: Grid,
    method: Method,
    *,
    strength: float | None = None,
    identity: float = 0.0,
) -> LayerResult:
    """Quantize one layer by GPTQ towards its corrected target.

    `strength`: of the rule "diagnostic", already worked out. `identity`: for a head that is also the token embedding: weight
    of the look-up, which wants the original rows; so its `inputs` are of a single network, and there is nothing to correct for.
    """
    centre = layer.shift_invariant or (bias is not None and method.absorb_bias)
    views = inputs.centered if centre else inputs.raw
    if identity:
        first, second = views.folds
        views = MomentViews(_with_identity(views.total, identity), (_with_identity(first, identity), _with_identity(second, identity)))
    # Choices are made on an even sample of the rows: they concern the inputs, which all rows share.
    some = slice(None, None, max(1, len(weight) // CHOICE_ROWS))
    folds = (views.folds[0].of_rows(some), views.folds[1].of_rows(some))
    fit = _choose_correction(layer, weight[some], folds, method, strength)
    held_out = None
    if method.damping == HELD_OUT:
        pairs = [(fit, damping) for damping in CANDIDATES]
        if method.strength == "cross-fit" and fit.strength > 0:
            pairs.append((NO_CORRECTION, CANDIDATES[0]))
        held_out = held_out_choice(
            weight[some], folds, grid, pairs=pairs, order=method.order, hessian_weighted_scales=method.hessian_weighted_scales
        )
        fit = held_out.fit
    damping = held_out.damping if held_out else float(method.damping)
    moments = views.single if min(damping, fit.ridge) >= SINGLE_DAMPING else views.total
    target = corrected_target(weight, moments, strength=fit.strength, ridge=fit.ridge)
    # Of the target, not of the weights: a correction can reach beyond the weights' range, where codes would clip.
    scaling = fit_scaling(target, grid, moments.hessian.importance if method.hessian_weighted_scales else None)
    result = gptq(
        target,
        moments.hessian,
        grid,
        damping=damping,
        order=method.order,
        scaling=scaling if method.order == "activation" else None,
        refits=method.refits_on(grid),
    )
    values = result.weight.dequantize()
    new_bias, shift = None, None
    if bias is not None and method.absorb_bias:
        wanted = weight.double() @ inputs.total.mean + inputs.total.mean_residual_error
        new_bias = (bias.double() + wanted - values.double() @ inputs.total.mean_hat).float()
        shift = new_bias - bias
    hessian = views.single.hessian.matrix
    rounded_error = relative_output_error(target, round_to_nearest(target, scaling, grid).dequantize(), hessian)
    added_error = relative_output_error(target, values, hessian)
    report = LayerReport(
        **_data_free(layer, weight, result.weight, relative_weight_error(weight[some], rtn(weight[some], grid).dequantize())),
        strength=fit.strength,
        ridge=fit.ridge if fit.strength else None,
        damping=result.damping,
        held_out_gain=fit.gain if method.strength == "cross-fit" else None,
        rounded_error=rounded_error,
        added_error=added_error,
        calibration_gain=calibration_gain(added_error, rounded_error),
        reliability=reliability_score(held_out.calibrated_error, held_out.rounded_error)
        if held_out
        else reliability_score(added_error, rounded_error),
        inherited_error=_output_error(weight, weight, inputs),
        outgoing_error=_output_error(weight, values, inputs, shift),
        positions=inputs.total.weight,
        dead_columns=result.dead,
        bias_absorbed=new_bias is not None,
    )
    return LayerResult(result.weight, new_bias, report)


def with_final_statistics(solution: LayerResult, weight: Tensor, inputs: LayerStatistics) -> LayerResult:
    """The same codes of a layer of weights `weight` that was solved before those ahead of it, with the errors it has behind them."""
    report = replace(
        solution.report,
        inherited_error=_output_error(weight, weight, inputs),
        outgoing_error=_output_error(weight, solution.weight.dequantize(), inputs),
    )
    return replace(solution, report=report)


def _choose_correction(layer: Layer, weight: Tensor, folds: tuple[Moments, Moments], method: Method, strength: float | None) -> CrossFit:
    ridge = FIXED_RIDGE if method.ridge == HELD_OUT else float(method.ridge)
    excluded = layer.mlp_output and not method.correct_mlp_output
    if excluded or method.strength == 0 or not bool(folds[0].cross.any() or folds[1].cross.any()):
        return CrossFit(0.0, ridge, 0.0)
    if method.strength == "cross-fit":
        return cross_fit(weight, folds, CANDIDATES if method.ridge == HELD_OUT else (ridge,))
    return CrossFit(strength if strength is not None else float(method.strength), ridge, 0.0)


def _data_free(layer: Layer, weight: Tensor, quantized: QuantizedTensor, vulnerability: float) -> dict[str, Any]:
    return {
        "name": layer.name,
        "part": layer.part,
        "bits": quantized.bits,
        "group_size": quantized.group_size,
        "bits_per_weight": quantized.bits_per_weight,
        "weights": weight.numel(),
        "vulnerability": vulnerability,
        "outlier_ratio": outlier_ratio(weight, quantized.group_size),
    }


def _with_identity(moments: Moments, identity: float) -> Moments:
    matrix = moments.hessian.matrix.clone()
    matrix.diagonal().add_(identity * matrix.diagonal().mean())
    return Moments(Hessian(matrix), moments.cross, moments.through)


def _output_error(weight: Tensor, other: Tensor, inputs: LayerStatistics, shift: Tensor | None = None) -> float:
    """`||W X + R - (Z X^ + shift + R^)||^2 / ||W X||^2` on the sampled positions, `R` being the residual stream where that counts."""
    wanted = inputs.samples @ weight.T
    missing = wanted - inputs.quantized_samples @ other.T
    if shift is not None:
        missing -= shift
    if inputs.residual_samples is not None:
        missing += inputs.residual_samples
    whole = float(wanted.square().sum())
    return float(missing.square().sum()) / whole if whole > 0 else 0.0
