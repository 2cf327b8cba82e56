"""From recordings to the moments of every layer's inputs, in both the original and the quantized network."""

import copy
import weakref
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.core.hessian import Hessian
from sottovoce.core.propagation import Moments
from sottovoce.errors import CalibrationError
from sottovoce.lockstep import Stop, walk_together
from sottovoce.models.base import Batch, Layer, SpeechModel

PROBE_ROWS = 64  # counted positions kept per batch and fold for measuring errors at the layers' outputs
CONSTANT_SHARE = 1e-6  # least share of a channel's energy that is counted as variance
SYMMETRIC_BLOCK = 256  # columns per block when only the upper triangle of a product is computed


@dataclass(frozen=True, kw_only=True)
class PositionWeights:
    """How much encoder positions count. `padding`: weight of positions beyond the end of the audio. `stride`: only every
    stride-th position counts (neighbouring frames of 20 ms say nearly the same)."""

    padding: float = 0.0
    stride: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.padding <= 1 or self.stride < 1:
            raise CalibrationError(
                f"padding weight {self.padding} must be within 0 .. 1 and stride {self.stride} at least 1"
            )


@dataclass(frozen=True, eq=False)
class Fold:
    """Sums over one fold's counted positions: second moments (float64), means `[in]` in both networks, total weight."""

    moments: Moments
    mean: Tensor
    mean_hat: Tensor
    weight: float

    @cached_property
    def centred(self) -> Moments:
        """The moments about the means. A channel that was active but constant keeps a trace of its energy: it is not dead."""
        raw = self.moments.hessian.matrix
        hessian = raw - self.weight * torch.outer(self.mean_hat, self.mean_hat)
        hessian.diagonal().copy_(torch.maximum(hessian.diagonal(), CONSTANT_SHARE * raw.diagonal()))
        shift = self.weight * torch.outer(self.mean - self.mean_hat, self.mean_hat)
        return Moments(Hessian(hessian), self.moments.cross - shift)


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What one layer sees: two folds; the mean absolute input of each channel in the quantized network, `magnitude` `[in]`; and
    a sample of its inputs `[n, in]` in the original (`probe`) and quantized network (`probe_hat`)."""

    folds: tuple[Fold, Fold]
    magnitude: Tensor
    probe: Tensor
    probe_hat: Tensor

    @cached_property
    def total(self) -> Fold:
        """Both folds together."""
        a, b = self.folds
        weight = a.weight + b.weight
        share = a.weight / weight if weight > 0 else 0.0
        return Fold(
            a.moments + b.moments,
            share * a.mean + (1 - share) * b.mean,
            share * a.mean_hat + (1 - share) * b.mean_hat,
            weight,
        )

    @cached_property
    def single(self) -> tuple[Moments, Moments]:
        """The folds' moments in float32, which is accurate enough to steer choices and twice as fast."""
        return _single(self.folds[0].moments), _single(self.folds[1].moments)

    @cached_property
    def single_centred(self) -> tuple[Moments, Moments]:
        """The same about the means."""
        return _single(self.folds[0].centred), _single(self.folds[1].centred)


def _single(moments: Moments) -> Moments:
    return Moments(Hessian(moments.hessian.matrix.float()), moments.cross.float())


def assign_folds(speakers: Sequence[str | None]) -> list[int]:
    """Fold 0 or 1 for each utterance; utterances of one (known) speaker share a fold, and the folds are kept level."""
    counts, of_speaker, folds = [0, 0], dict[str, int](), []
    for speaker in speakers:
        fold = 0 if counts[0] <= counts[1] else 1
        if speaker is not None:
            fold = of_speaker.setdefault(speaker, fold)
        counts[fold] += 1
        folds.append(fold)
    return folds


def make_batches(
    model: SpeechModel,
    recordings: Sequence[np.ndarray],
    transcripts: Sequence[Sequence[int]],
    folds: Sequence[int],
    *,
    batch_size: int,
    positions: PositionWeights,
    language: str | None,
) -> list[Batch]:
    """Teacher-forced batches of `batch_size` utterances, in the given order."""
    batches = []
    for start in range(0, len(recordings), batch_size):
        piece = slice(start, start + batch_size)
        inputs, tokens = model.teacher_forcing(transcripts[piece], language)
        frames = model.frame_mask(recordings[piece]).float()
        frames = torch.where(frames > 0, frames, positions.padding)
        frames[:, torch.arange(frames.shape[1]) % positions.stride != 0] = 0
        features = model.features(recordings[piece])
        batches.append(
            Batch(
                {**features, **inputs, "use_cache": False},
                {"frames": frames, "tokens": tokens.float()},
                torch.tensor(folds[piece]),
            )
        )
    return batches


def share_weights(network: nn.Module) -> nn.Module:
    """A copy of `network` with modules of its own that share all tensors; replace a parameter to change only the copy."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def layer_inputs(
    networks: Sequence[nn.Module], batches: Sequence[Batch], layers: Collection[Layer]
) -> Iterator[tuple[Layer, LayerInputs]]:
    """Walk the networks in lockstep and yield every layer with its moments, in calling order.

    `networks`: the original and the one being quantized, or a single one (then the cross-moments are zero). Whatever the
    caller changes in the quantized network's layer takes effect for all layers after it. Layers that receive the very same
    tensors share one `LayerInputs`. Raises `CalibrationError` as `walk_together` does, and for NaN in a layer's inputs.
    """
    by_name = {layer.name: layer for layer in layers}
    recent: list[tuple[_Identity, LayerInputs]] = []
    for stop in walk_together(networks, [batch.inputs for batch in batches], by_name):
        layer = by_name[stop.name]
        recent = [(identity, seen) for identity, seen in recent if identity.alive()]
        identity = _Identity(stop)
        known = next((seen for other, seen in recent if other.same(identity)), None)
        if known is None:
            known = _accumulate(stop, batches, layer)
            recent.append((identity, known))
        del stop
        yield layer, known


class _Identity:
    """Recognises the same tensors at a later stop without keeping them alive."""

    def __init__(self, stop: Stop) -> None:
        self._refs = [weakref.ref(tensor) for row in stop.inputs for tensor in row]
        self._versions = [tensor._version for row in stop.inputs for tensor in row]

    def alive(self) -> bool:
        return all(ref() is not None for ref in self._refs)

    def same(self, other: "_Identity") -> bool:
        return self._versions == other._versions and all(
            mine() is theirs() for mine, theirs in zip(self._refs, other._refs, strict=True)
        )


def _accumulate(stop: Stop, batches: Sequence[Batch], layer: Layer) -> LayerInputs:
    width = stop.inputs[0][0].shape[-1]
    sums, probes, probes_hat = [_Sums(width), _Sums(width)], [], []
    for i, batch in enumerate(batches):
        weights = batch.weights[layer.positions]
        original, quantized = stop.inputs[0][i], stop.inputs[-1][i]
        if original.shape[:-1] != weights.shape:
            raise CalibrationError(
                f"{layer.name}: inputs of shape {tuple(original.shape)} do not fit {tuple(weights.shape)} {layer.positions}"
            )
        same = original is quantized or torch.equal(original, quantized)
        for fold in (0, 1):
            counted = (weights > 0) & (batch.folds == fold).unsqueeze(1)
            root = weights[counted].sqrt().unsqueeze(1)
            rows_hat = _rows(quantized, counted, root)
            rows = rows_hat if same else _rows(original, counted, root)
            sums[fold].add(rows, rows_hat, root)
            every = max(1, len(rows) // PROBE_ROWS)
            probes.append(rows[::every].clone())
            probes_hat.append(probes[-1] if same else rows_hat[::every].clone())
    for total in sums:
        if not bool(torch.isfinite(total.hessian).all()):
            raise CalibrationError(
                f"{layer.name}: its inputs hold NaN or infinite values; check the audio and the model's weights"
            )
    magnitude = (sums[0].total_magnitude + sums[1].total_magnitude) / max(sums[0].weight + sums[1].weight, 1e-12)
    return LayerInputs((sums[0].fold(), sums[1].fold()), magnitude.float(), torch.cat(probes), torch.cat(probes_hat))


def _rows(inputs: Tensor, counted: Tensor, root: Tensor) -> Tensor:
    rows = inputs[counted].float()
    return rows if bool((root == 1).all()) else rows * root


class _Sums:
    """Running sums in float64 of float32 products over one batch."""

    def __init__(self, width: int) -> None:
        self.hessian = torch.zeros(width, width, dtype=torch.float64)
        self.cross = torch.zeros(width, width, dtype=torch.float64)
        self.total = torch.zeros(width, dtype=torch.float64)
        self.total_hat = torch.zeros(width, dtype=torch.float64)
        self.total_magnitude = torch.zeros(width, dtype=torch.float64)
        self.weight = 0.0

    def add(self, rows: Tensor, rows_hat: Tensor, root: Tensor) -> None:
        if not len(rows):
            return
        width = rows.shape[1]
        for start in range(0, width, SYMMETRIC_BLOCK):
            block = slice(start, start + SYMMETRIC_BLOCK)
            self.hessian[block, start:] += rows_hat[:, block].T @ rows_hat[:, start:]
        if rows is not rows_hat:
            self.cross += (rows - rows_hat).T @ rows_hat
        self.total += (rows * root).sum(0, dtype=torch.float64)
        self.total_hat += (rows_hat * root).sum(0, dtype=torch.float64)
        self.total_magnitude += (rows_hat.abs() * root).sum(0, dtype=torch.float64)
        self.weight += float(root.square().sum())

    def fold(self) -> Fold:
        upper = self.hessian.triu()
        hessian = upper + upper.triu(1).T
        mean = self.total / self.weight if self.weight > 0 else self.total
        mean_hat = self.total_hat / self.weight if self.weight > 0 else self.total_hat
        return Fold(Moments(Hessian(hessian), self.cross), mean, mean_hat, self.weight)
