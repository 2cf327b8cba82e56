"""How the errors of quantized layers add up in the logits: one number for each pair of units.

With `M_0` the original and `M_l` the model with the first l units quantized (in calling order), the change of the logits `D_l = z(M_l) -
z(M_{l-1})` telescopes to the whole. At every token, under the original's probabilities p,

    u_l = sqrt(p) * (D_l - <p, D_l>),     C_lm = mean over tokens of <u_l, u_m>

To second order the KL of the whole is half the sum of C. Its trace is what the units do alone; what is off the diagonal says whether they
add (positive) or cancel (negative). C is a Gram matrix, so it is positive semi-definite. L passes are needed for L units.

The tokens of highest probability are kept one by one, and the rest is one token with their mean change: so u has a few hundred numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sottovoce.errors import DataError
from sottovoce.evaluation.held_out import HeldOutSpeech
from sottovoce.models.parameters import copy_layer
from sottovoce.models.speech_model import SpeechModel
from sottovoce.system.devices import in_float64, share_weights
from sottovoce.system.progress import Progress, silent

TOP_TOKENS = 256  # kept one by one
ROUNDING = "float16"  # the last unit: all that is not quantized but rounded to float16
Mode = Literal["telescoped", "alone"]


@dataclass(frozen=True, eq=False)
class ErrorStatistics:
    """`matrix` `[units, units]`: C, in nats times two. `measured_kl`: of the whole, on the same tokens. `shuffled`: half the sum of
    C when each unit's tokens are shuffled on their own, which leaves the trace alone; a control."""

    units: tuple[str, ...]
    matrix: np.ndarray
    measured_kl: float
    shuffled_kl: float
    tokens: int
    mode: Mode

    @cached_property
    def predicted_kl(self) -> float:
        """Half the sum of C."""
        return float(self.matrix.sum()) / 2

    @cached_property
    def alone_kl(self) -> float:
        """Half the trace of C: as if all errors were independent."""
        return float(np.trace(self.matrix)) / 2

    @property
    def off_diagonal_share(self) -> float:
        """(sum - trace) / sum; negative where errors cancel."""
        return 1 - self.alone_kl / self.predicted_kl if self.predicted_kl else 0.0

    @property
    def correlation(self) -> np.ndarray:
        """C with ones on its diagonal; zeros for units that do nothing."""
        size = np.sqrt(np.diag(self.matrix))
        scale = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
        return np.asarray(self.matrix * np.outer(scale, scale))

    def grouped(self, part_of: Mapping[str, str]) -> tuple[list[str], np.ndarray]:
        """Return C summed over the parts of the model: their names, and the matrix, halved (nats)."""
        names = list(dict.fromkeys(part_of.get(unit, unit) for unit in self.units))
        member = np.array([[part_of.get(unit, unit) == name for unit in self.units] for name in names], float)
        return names, member @ self.matrix @ member.T / 2


@dataclass(frozen=True, kw_only=True)
class ErrorTable:
    """The statistics as they are stored: nats; `half_sum_by_part` `[parts, parts]` is halved, `matrix` `[units, units]` is not."""

    mode: Mode
    tokens: int
    measured_kl: float
    half_sum: float
    half_trace: float
    off_diagonal_share: float
    half_sum_shuffled: float
    parts: tuple[str, ...]
    half_sum_by_part: tuple[tuple[float, ...], ...]
    units: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        """Raises `DataError` if the matrix is not square, with a row for every unit."""
        if {len(self.units)} != {len(self.matrix), *(len(row) for row in self.matrix)}:
            raise DataError(
                f"the matrix of errors has {len(self.matrix)} rows for {len(self.units)} units; each needs one, as long as that"
            )


def error_table(found: ErrorStatistics, parts: Mapping[str, str]) -> ErrorTable:
    """Return what is stored of the statistics; `parts`: the part of the model by unit."""
    names, grouped = found.grouped(parts)
    return ErrorTable(
        mode=found.mode,
        tokens=found.tokens,
        measured_kl=found.measured_kl,
        half_sum=found.predicted_kl,
        half_trace=found.alone_kl,
        off_diagonal_share=found.off_diagonal_share,
        half_sum_shuffled=found.shuffled_kl,
        parts=tuple(names),
        half_sum_by_part=tuple(map(tuple, grouped.tolist())),
        units=found.units,
        matrix=tuple(map(tuple, found.matrix.tolist())),
    )


@torch.no_grad()
def error_statistics(
    original: SpeechModel,
    quantized: SpeechModel,
    units: Mapping[str, Sequence[str]],
    speech: HeldOutSpeech,
    *,
    mode: Mode = "telescoped",
    seed: int = 0,
    progress: Progress = silent,
) -> ErrorStatistics:
    """Compute C for `units` (names of layers, in calling order). `mode` "alone": each unit is quantized on its own in the original.

    `quantized`: the same network with other weights. What differs besides the units (rounding to float16) is a last unit.
    """
    whole = speech.log_probabilities(quantized, speech.states(quantized, speech.encode(quantized)))
    frame = _Frame(speech.log_p)
    model = original.with_network(share_weights(original.network))
    rows, before = list[Tensor](), speech.log_p
    in_encoder = {layer.name for layer in original.layers() if layer.part == "encoder"}
    encoded = untouched = speech.encode(original)
    for n, layers in enumerate(units.values()):
        progress("quantizing unit by unit", n, len(units))
        for layer in layers:
            copy_layer(model, quantized, layer)
        if in_encoder & set(layers):
            encoded = speech.encode(model)
        log_q = speech.log_probabilities(model, speech.states(model, encoded))
        rows.append(frame.contribution(log_q - before))
        if mode == "telescoped":
            before = log_q
        else:
            for layer in layers:
                copy_layer(model, original, layer)
            encoded = untouched
    names = list(units)
    if mode == "telescoped":
        names.append(ROUNDING)
        rows.append(frame.contribution(whole - before))
    progress("quantizing unit by unit", len(units), len(units))
    stacked = in_float64(torch.stack(rows))
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in stacked])
    matrix = torch.einsum("ltk,mtk->lm", stacked, stacked) / speech.n_tokens
    return ErrorStatistics(
        units=tuple(names),
        matrix=matrix.numpy(),
        measured_kl=float(in_float64(speech.divergence(whole)).mean()),
        shuffled_kl=float(shuffled.sum(0).square().sum() / speech.n_tokens / 2),
        tokens=speech.n_tokens,
        mode=mode,
    )


class _Frame:
    """Coordinates in which KL to second order is half a squared length."""

    def __init__(self, log_p: Tensor) -> None:
        p = log_p.exp()
        count = min(TOP_TOKENS, p.shape[-1])
        self._p = p
        self._top_p, self._top = p.topk(count, dim=-1)
        self._rest_p = (1 - self._top_p.sum(-1, keepdim=True)).clamp(min=0)

    def contribution(self, change: Tensor) -> Tensor:
        """Return u `[n_tokens, k + 1]` of a change of the logits `[n_tokens, vocabulary]`, up to a constant at each token."""
        mean = (self._p * change).sum(-1, keepdim=True)
        top = change.gather(-1, self._top)
        rest = mean - (self._top_p * top).sum(-1, keepdim=True)  # times the probability of the rest
        rest = torch.where(self._rest_p > 1e-9, rest / self._rest_p.clamp(min=1e-9), mean)
        return torch.cat([self._top_p.sqrt() * (top - mean), self._rest_p.sqrt() * (rest - mean)], -1)
