"""What tuning makes small, for one utterance: the KL of token distributions, and the relative squared error of encoder states."""

import torch
from torch import Tensor


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the sum over positions of KL(p || q) = sum_v p(v) (log p(v) - log q(v)), in nats; `log_p`, `log_q` `[T, vocabulary]`."""
    return (log_p.exp() * (log_p - log_q)).sum()


def relative_error(states: Tensor, wanted: Tensor) -> Tensor:
    """Return `|states - wanted|^2 / |wanted|^2` over all positions and channels of `[T, d]`."""
    return (states - wanted).square().sum() / wanted.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
