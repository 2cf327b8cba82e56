"""How far quantized weights are from the original ones, judged by their outputs."""

import torch
from torch import Tensor


def output_energy(weight: Tensor, hessian: Tensor) -> float:
    """Return `tr(W H W^T)`: the summed squared outputs of `weight` `[out, in]` on inputs with second moment `hessian` `[in, in]`."""
    weight = weight.to(hessian.dtype)
    return float(((weight @ hessian) * weight).sum())


def relative_output_error(weight: Tensor, other: Tensor, hessian: Tensor, whole: float | None = None) -> float:
    """Return `E(Z) = tr((W - Z) H (W - Z)^T) / tr(W H W^T)`; 0 where the layer puts out nothing at all. `whole`: the latter, if known."""
    whole = output_energy(weight, hessian) if whole is None else whole
    return output_energy(weight.float() - other.float(), hessian) / whole if whole > 0 else 0.0


def relative_weight_error(weight: Tensor, other: Tensor) -> float:
    """Return `||W - Z|| / ||W||` (Frobenius); of RTN's weights it is the layer's vulnerability."""
    whole = float(torch.linalg.vector_norm(weight.float()))
    return float(torch.linalg.vector_norm(weight.float() - other.float())) / whole if whole > 0 else 0.0


def code_entropy(codes: Tensor) -> float:
    """Return the Shannon entropy of uint8 `codes` in bits, by their frequencies; a lossless coder without context needs that many."""
    counts = torch.bincount(codes.flatten().long()).cpu().double()
    shares = counts[counts > 0] / codes.numel()
    return float(-(shares * shares.log2()).sum()) + 0.0


def outlier_ratio(weight: Tensor, group_size: int) -> float:
    """Return the mean over the groups of `max|w| / rms(w)`; at least 1. Groups of zeros are left out."""
    grouped = weight.float().reshape(len(weight), -1, group_size)
    rms = grouped.square().mean(-1).sqrt()
    seen = rms > 0
    return float((grouped.abs().amax(-1)[seen] / rms[seen]).mean()) if bool(seen.any()) else 1.0
