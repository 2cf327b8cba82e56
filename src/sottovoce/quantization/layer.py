"""One layer: from its statistics to codes, bias and diagnostics, by the method of the recipe."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sottovoce.core.error_metrics import code_entropy, outlier_ratio, output_energy, relative_output_error, relative_weight_error
from sottovoce.core.fade import CANDIDATES, NO_CORRECTION, CrossFit, calibration_gain, cross_fit, held_out_choice, reliability_score
from sottovoce.core.gptq import gptq
from sottovoce.core.hessian import Hessian
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qep import Moments, corrected_target
from sottovoce.core.qtensor import QuantizedTensor, round_to_nearest
from sottovoce.core.rtn import rtn
from sottovoce.models.layers import Layer, Part
from sottovoce.quantization.methods import GPTQ, HELD_OUT, QEP
from sottovoce.quantization.statistics import LayerStatistics, MomentViews

CHOICE_ROWS = 64  # output rows on which strength, ridge and damping are chosen
FLOAT32_DAMPING = 0.1  # from here on float32 gives the codes of float64 but for some in ten thousand
FIXED_RIDGE = 0.3  # of the rule "diagnostic", whose strengths come from the layers' diagnostics and not from the folds
NO_CORRECTION_RIDGE = 0.01  # of a layer whose target is not corrected; it decides only that float64 is used


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """Diagnostics of one layer; errors are shares of the layer's output energy on the calibration inputs.

    None stands for what a method without calibration data cannot know.
    """

    name: str
    part: Part
    bits: int  # of one code
    bits_per_weight: float  # with the format's parameters
    weights: int
    vulnerability: float  # RTN's relative weight error (on an even sample of the rows where the method calibrates)
    outlier_ratio: float  # mean over blocks of max|w| / rms(w)
    code_entropy: float | None = None  # bits that a lossless coder needs for a code, by how often each occurs in the layer
    strength: float = 0.0  # of the correction, as used
    ridge: float | None = None  # of the correction, as used
    damping: float | None = None  # of the Hessian, as used
    held_out_gain: float | None = None  # the output error that the correction removes on utterances it was not learnt on
    rounded_error: float | None = None  # what RTN adds to the target
    added_error: float | None = None  # what the chosen codes add to the same target
    worst_case: float | None = None  # of `added_error`, if nothing clips (see `core.gptq`)
    calibration_gain: float | None = None  # see `core.fade`
    reliability: float | None = None  # see `core.fade`; held out where the folds were used, else in-sample
    inherited_error: float | None = None  # what earlier layers' errors do to this layer's output
    # What leaves the layer, with its own rounding; like `inherited_error` with the error of the residual stream that it is added to,
    # where the method compensates for that.
    outgoing_error: float | None = None
    positions: float = 0.0  # weight of all positions that were counted
    dead_columns: int = 0  # input channels that are never active
    bias_absorbed: bool = False  # whether the bias is new


@dataclass(frozen=True, eq=False)
class LayerResult:
    """Codes, the new bias (None: as it was) and the report of one layer; tensors are on the CPU."""

    weight: QuantizedTensor
    bias: Tensor | None
    report: LayerReport


def round_layer(layer: Layer, weight: Tensor, number_format: NumberFormat, importance: Tensor | None = None) -> LayerResult:
    """Round to nearest, without any data but, where given, the `importance` `[in]` of the columns."""
    quantized = rtn(weight, number_format, importance)
    vulnerability = relative_weight_error(weight, quantized.dequantize())
    return LayerResult(quantized.cpu(), None, LayerReport(**_data_free(layer, weight, quantized, vulnerability)))


def quantize_layer(
    layer: Layer,
    weight: Tensor,
    bias: Tensor | None,
    statistics: LayerStatistics,
    number_format: NumberFormat,
    method: GPTQ,
    *,
    strength: float | None = None,
    embedding_weight: float = 0.0,
) -> LayerResult:
    """Quantize one layer by GPTQ towards its corrected target.

    `weight` `[out, in]`, `bias` `[out]`: on the device of the statistics.
    `strength`: of the rule "diagnostic", already worked out. `embedding_weight`: for a head that
    is also the token embedding: weight of the look-up, which wants the original rows; its statistics are of a single network, so there
    is nothing to correct for.
    """
    views = _views(layer, bias, statistics, method, embedding_weight)
    # Choices are made on an even sample of the rows: they concern the inputs, which all rows share.
    some = slice(None, None, max(1, len(weight) // CHOICE_ROWS))
    chosen = _choose(layer, weight[some], (views.folds[0].of_rows(some), views.folds[1].of_rows(some)), number_format, method, strength)
    fit = chosen.fit
    moments = views.float32 if min(chosen.damping, fit.ridge) >= FLOAT32_DAMPING else views.total
    target = corrected_target(weight, moments, strength=fit.strength, ridge=fit.ridge)
    # A weight that nothing comes through becomes 0, and must not widen the range of its group.
    target = torch.where(moments.hessian.dead, 0.0, target)
    # Fitted to the target, not to the weights: a correction can reach beyond the weights' range, where codes would clip.
    parameters = number_format.fit(target, moments.hessian.importance if method.hessian_weighted_scales else None)
    result = gptq(
        target,
        moments.hessian,
        number_format,
        damping=chosen.damping,
        act_order=method.act_order,
        parameters=parameters if method.act_order else None,
        scale_refits=method.scale_refits_for(number_format),
        adaptive=method.adaptive_scales and method.act_order,
    )
    values = result.weight.dequantize()
    new_bias = _absorbing_bias(weight, bias, values, statistics) if bias is not None and method.absorb_bias else None
    hessian = views.float32.hessian.matrix
    energy = output_energy(target, hessian)
    rounded_error = relative_output_error(target, round_to_nearest(target, parameters, number_format).dequantize(), hessian, energy)
    added_error = relative_output_error(target, values, hessian, energy)
    vulnerability = relative_weight_error(weight[some], rtn(weight[some], number_format).dequantize())
    report = LayerReport(
        **_data_free(layer, weight, result.weight, vulnerability),
        strength=fit.strength,
        ridge=fit.ridge if fit.strength else None,
        damping=result.damping,
        held_out_gain=fit.gain if isinstance(method, QEP) and method.strength == "cross-fit" else None,
        rounded_error=rounded_error,
        added_error=added_error,
        worst_case=result.worst_case / energy if energy > 0 else None,
        calibration_gain=calibration_gain(added_error, rounded_error),
        reliability=reliability_score(added_error, rounded_error) if chosen.reliability is None else chosen.reliability,
        inherited_error=_output_error(weight, weight, statistics),
        outgoing_error=_output_error(weight, values, statistics, None if new_bias is None or bias is None else new_bias - bias),
        positions=statistics.total.weight,
        dead_columns=result.dead,
        bias_absorbed=new_bias is not None,
    )
    return LayerResult(result.weight.cpu(), None if new_bias is None else new_bias.cpu(), report)


def with_final_statistics(result: LayerResult, weight: Tensor, statistics: LayerStatistics) -> LayerResult:
    """Return `result` with its errors measured on the layer's final inputs (a tied head is quantized before the decoder)."""
    report = replace(
        result.report,
        inherited_error=_output_error(weight, weight, statistics),
        outgoing_error=_output_error(weight, result.weight.dequantize(), statistics),
    )
    return replace(result, report=report)


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """How a layer is to be quantized. `reliability`: held out, None where nothing was."""

    fit: CrossFit
    damping: float
    reliability: float | None = None


def _views(layer: Layer, bias: Tensor | None, statistics: LayerStatistics, method: GPTQ, embedding_weight: float) -> MomentViews:
    """Return the moments that count: about the mean, where a constant error does no harm; with the look-up of a tied embedding."""
    views = statistics.centered if layer.shift_invariant or (bias is not None and method.absorb_bias) else statistics.raw
    if not embedding_weight:
        return views
    first, second = (_with_embedding(fold, embedding_weight) for fold in views.folds)
    return MomentViews(_with_embedding(views.total, embedding_weight), (first, second))


def _choose(
    layer: Layer,
    weight: Tensor,
    folds: tuple[Moments, Moments],
    number_format: NumberFormat,
    method: GPTQ,
    strength: float | None,
) -> _Chosen:
    """Choose strength, ridge and damping for the rows `weight` `[n, in]`, each on what it was not learnt on where the method says so."""
    fit = _choose_correction(layer, weight, folds, method, strength)
    if method.damping != HELD_OUT:
        return _Chosen(fit=fit, damping=float(method.damping))
    pairs = [(fit, damping) for damping in CANDIDATES]
    if isinstance(method, QEP) and method.strength == "cross-fit" and fit.strength > 0:
        pairs.append((NO_CORRECTION, CANDIDATES[0]))
    best = held_out_choice(
        weight,
        folds,
        number_format,
        pairs=pairs,
        act_order=method.act_order,
        hessian_weighted_scales=method.hessian_weighted_scales,
    )
    return _Chosen(fit=best.fit, damping=best.damping, reliability=reliability_score(best.calibrated_error, best.rounded_error))


def _choose_correction(layer: Layer, weight: Tensor, folds: tuple[Moments, Moments], method: GPTQ, strength: float | None) -> CrossFit:
    if not isinstance(method, QEP):
        return CrossFit(0.0, NO_CORRECTION_RIDGE, 0.0)
    ridge = FIXED_RIDGE if method.ridge == HELD_OUT else float(method.ridge)
    excluded = layer.mlp_output and not method.correct_mlp_output
    if excluded or method.strength == 0 or not bool(folds[0].cross.any() or folds[1].cross.any()):
        return CrossFit(0.0, ridge, 0.0)
    if method.strength == "cross-fit":
        return cross_fit(weight, folds, CANDIDATES if method.ridge == HELD_OUT else (ridge,))
    if strength is None and method.ridge == HELD_OUT:
        return cross_fit(weight, folds, CANDIDATES, fixed=float(method.strength))
    return CrossFit(strength if strength is not None else float(method.strength), ridge, 0.0)


def _absorbing_bias(weight: Tensor, bias: Tensor, values: Tensor, statistics: LayerStatistics) -> Tensor:
    """Return the bias `[out]` that takes up the mean error of the outputs: of earlier layers, and of the new weights `values`."""
    total = statistics.total
    wanted = weight.double() @ total.mean + total.mean_residual_error
    return (bias.double() + wanted - values.double() @ total.quantized_mean).float()


def _data_free(layer: Layer, weight: Tensor, quantized: QuantizedTensor, vulnerability: float) -> dict[str, Any]:
    return {
        "name": layer.name,
        "part": layer.part,
        "bits": quantized.format.code_bits,
        "bits_per_weight": quantized.bits_per_weight,
        "weights": weight.numel(),
        "vulnerability": vulnerability,
        "code_entropy": code_entropy(quantized.codes),
        "outlier_ratio": outlier_ratio(weight, quantized.format.block_size(weight.shape[1])),
    }


def _with_embedding(moments: Moments, weight: float) -> Moments:
    """The moments with a multiple of the mean diagonal on the diagonal, to account for the embedding look-up."""
    matrix = moments.hessian.matrix.clone()
    matrix.diagonal().add_(weight * matrix.diagonal().mean())
    return Moments(Hessian(matrix), moments.cross, moments.projected)


def _output_error(weight: Tensor, other: Tensor, statistics: LayerStatistics, shift: Tensor | None = None) -> float:
    """`||W X + R - (Z X^ + shift + R^)||^2 / ||W X||^2` on the sampled positions, `R` being the residual stream where that counts."""
    wanted = statistics.samples @ weight.to(statistics.device).T
    missing = wanted - statistics.quantized_samples @ other.to(statistics.device).T
    if shift is not None:
        missing -= shift if statistics.sample_roots is None else statistics.sample_roots * shift
    if statistics.residual_samples is not None:
        missing += statistics.residual_samples
    whole = float(wanted.square().sum())
    return float(missing.square().sum()) / whole if whole > 0 else 0.0
