"""FADE (arXiv 2601.02455): how strongly each layer corrects for inherited error, chosen by diagnostics.

The paper's formulas are not public. The two rules here are ours:

- *diagnostic*: `alpha = sigmoid(z(V) + z(CRS))`. `V` is the layer's vulnerability (RTN's relative weight error), `CRS` its
  calibration reliability score, `z` the standard score among the layers of the same half of the model. A layer of average
  diagnostics gets 0.5, QEP's customary strength.
- *cross-fit*: the correction learnt on one fold of the calibration utterances is judged on the other, where the best
  strength is a one-dimensional least-squares problem:

      alpha = (<C_A, W D_B> + <C_B, W D_A>) / (<C_A H_B, C_A> + <C_B H_A, C_B>),   C_A = W D_A (H_A + ridge)^-1

  The ridge is chosen with it: the pair that removes most held-out error. GPTQ's damping is chosen by the same argument:
  weights quantized with the Hessian of one fold are judged on the other; and so is whether to correct at all, since a target that
  is better before rounding may be worse after it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.core.error_metrics import output_energy
from sottovoce.core.gptq import round_columns
from sottovoce.core.number_format import NumberFormat, Parameters, stack
from sottovoce.core.qep import Moments, correction

CANDIDATES = (0.1, 0.3, 1.0)  # ridges and dampings tried, in units of the mean diagonal


@dataclass(frozen=True)
class CrossFit:
    """The strength and ridge with the largest held-out gain, and that gain: the share of `tr(W H W^T)` it removes."""

    strength: float
    ridge: float
    gain: float


def cross_fit(
    weight: Tensor,
    folds: tuple[Moments, Moments],
    ridges: Sequence[float] = CANDIDATES,
    *,
    limit: float = 1.0,
    fixed: float | None = None,
) -> CrossFit:
    """Choose strength in `[0, limit]` and ridge for `weight` `[out, in]` by held-out evidence.

    `fixed`: the strength, if only the ridge is free. Where no strength helps, it is 0. A fixed one stays, with the ridge that
    does the least harm.
    """
    a, b = folds
    weight = weight.to(a.cross.dtype)
    output_a, output_b = a.cross_output(weight), b.cross_output(weight)
    energy = output_energy(weight, a.hessian.matrix) + output_energy(weight, b.hessian.matrix)
    if energy <= 0:
        return CrossFit(fixed or 0.0, max(ridges), 0.0)
    tried = [CrossFit(0.0, max(ridges), 0.0)] if fixed is None else []
    for ridge in ridges:
        from_a, from_b = a.hessian.solve(output_a, ridge), b.hessian.solve(output_b, ridge)
        agreement = float((from_a * output_b).sum() + (from_b * output_a).sum())
        size = output_energy(from_a, b.hessian.matrix) + output_energy(from_b, a.hessian.matrix)
        if size <= 0:
            continue
        strength = min(max(agreement / size, 0.0), limit) if fixed is None else fixed
        tried.append(CrossFit(strength, ridge, (2 * strength * agreement - strength**2 * size) / energy))
    return max(tried, key=lambda fit: fit.gain, default=CrossFit(fixed or 0.0, max(ridges), 0.0))


@dataclass(frozen=True)
class HeldOut:
    """`fit` and `damping`: the pair with the least held-out output error once rounded.

    `rounded_error`, `calibrated_error`: what rounding the target adds on the other fold, by RTN and by GPTQ at that damping,
    as shares of `tr(W H W^T)`.
    """

    fit: CrossFit
    damping: float
    rounded_error: float
    calibrated_error: float


NO_CORRECTION = CrossFit(0.0, max(CANDIDATES), 0.0)


def held_out_choice(
    weight: Tensor,
    folds: tuple[Moments, Moments],
    number_format: NumberFormat,
    *,
    pairs: Sequence[tuple[CrossFit, float]],
    act_order: bool = True,
    hessian_weighted_scales: bool = False,
) -> HeldOut:
    """Quantize with one fold and judge on the other, for every pair of a correction and a damping at once.

    Judged by the output error `||W X - Q X^||^2`, up to the part of it that no `Q` can change; of equals the first wins. Each
    correction is learnt on the same fold as the Hessian. Parameters are fitted to each target; `hessian_weighted_scales`: weighted
    by the Hessian's diagonal.
    """
    weight = weight.to(folds[0].cross.dtype)
    targets: list[list[Tensor]] = []
    parameters: list[list[Parameters]] = []
    factors = []
    for fold in folds:
        importance = fold.hessian.importance if hessian_weighted_scales else None
        target_of = {fit: _target(weight, fold, fit) for fit, _ in pairs}
        fitted = {fit: number_format.fit(target, importance) for fit, target in target_of.items()}
        targets.append([target_of[fit] for fit, _ in pairs])
        parameters.append([fitted[fit] for fit, _ in pairs])
        factors.append(torch.stack([fold.hessian.factor(damping, act_order)[0].float() for _, damping in pairs]))
    codes, _ = round_columns(
        torch.stack([torch.stack(row) for row in targets]),  # [fold, pair, out, in]
        torch.stack(factors),
        number_format,
        torch.stack([fold.hessian.columns(act_order) for fold in folds]).unsqueeze(1).expand(-1, len(pairs), -1),
        stack([stack(row) for row in parameters]),
    )
    judges = (folds[1], folds[0])
    values = [[number_format.decode(codes[i, j], parameters[i][j]) for j in range(len(pairs))] for i in range(2)]
    losses = [0.0] * len(pairs)
    for i, judge in enumerate(judges):
        cross_output = judge.cross_output(weight)
        for j in range(len(pairs)):
            error = weight - values[i][j]
            losses[j] += output_energy(error, judge.hessian.matrix) + 2 * float((error * cross_output).sum())
    best = min(range(len(pairs)), key=lambda j: losses[j])
    energy, rounded, added = 0.0, 0.0, 0.0
    for i, judge in enumerate(judges):
        target = targets[i][best]
        plain = number_format.decode(number_format.encode(target, parameters[i][best]), parameters[i][best])
        energy += output_energy(weight, judge.hessian.matrix)
        rounded += output_energy(target - plain, judge.hessian.matrix)
        added += output_energy(target - values[i][best], judge.hessian.matrix)
    energy = energy if energy > 0 else 1.0
    return HeldOut(*pairs[best], rounded / energy, added / energy)


def _target(weight: Tensor, fold: Moments, fit: CrossFit) -> Tensor:
    target = weight if fit.strength == 0 else weight + fit.strength * correction(weight, fold, fit.ridge)
    return torch.where(fold.hessian.dead, 0.0, target).float()


def reliability_score(calibrated_error: float, rounded_error: float) -> float:
    """Calibration reliability score `(Acc_cal - Acc_RTN) / Acc_RTN` with accuracy `1 - E`; 0 where RTN leaves no accuracy."""
    accuracy = 1 - rounded_error
    return (rounded_error - calibrated_error) / accuracy if accuracy > 1e-6 else 0.0


def calibration_gain(calibrated_error: float, rounded_error: float) -> float:
    """`(E(RTN) - E(calibrated)) / E(RTN)`: what the data-driven solution buys over plain rounding."""
    return (rounded_error - calibrated_error) / rounded_error if rounded_error > 0 else 0.0


def diagnostic_strengths(vulnerability: Sequence[float], reliability: Sequence[float]) -> list[float]:
    """The rule *diagnostic* over the layers of one half of the model: `sigmoid(z(V) + z(CRS))`, in (0, 1)."""
    scores = zip(_standard_scores(vulnerability), _standard_scores(reliability), strict=True)
    return [1 / (1 + math.exp(-(v + r))) for v, r in scores]


def _standard_scores(values: Sequence[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / deviation if deviation > 1e-12 else 0.0 for value in values]
