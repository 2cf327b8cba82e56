"""From recordings to the moments of every layer's inputs, in both the original and the quantized network."""

import copy
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.core.hessian import Hessian
from sottovoce.core.propagation import Moments
from sottovoce.errors import CalibrationError
from sottovoce.lockstep import Stop, walk_together
from sottovoce.models.base import Batch, Layer, SpeechModel, batches_by_language

PROBE_ROWS = 48  # counted positions kept per batch and fold for measuring errors at the layers' outputs
CONSTANT_SHARE = 1e-6  # least share of a channel's energy that is counted as variance
PRODUCT_ROWS = 2048  # positions multiplied at once: enough that adding up the products takes little of the time
SYMMETRIC_BLOCK = 256  # columns per block when only the upper triangle of a product is computed
NO_GAP = torch.zeros((), dtype=torch.float64)  # of a stream that is not corrected


@dataclass(frozen=True, kw_only=True)
class PositionWeights:
    """How much encoder positions count. `padding`: weight of positions beyond the end of the audio. `stride`: only every
    stride-th position counts (neighbouring frames of 20 ms say nearly the same)."""

    padding: float = 0.0
    stride: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.padding <= 1 or self.stride < 1:
            raise CalibrationError(f"padding weight {self.padding} must be within 0 .. 1 and stride {self.stride} at least 1")


@dataclass(frozen=True, eq=False)
class Fold:
    """Sums over one fold's counted positions: second moments (float64), means `[in]` in both networks, total weight.

    `reader`: the one weight `[out, in]` through which the cross-moment is seen, if it is; then the cross-moment and `mean_gap`
    `[out]` hold what the residual stream lacks as well, where that is asked for (else `mean_gap` is the scalar zero).
    """

    moments: Moments
    mean: Tensor
    mean_hat: Tensor
    weight: float
    reader: Tensor | None = None
    mean_gap: Tensor = NO_GAP

    @cached_property
    def centred(self) -> Moments:
        """The moments about the means. A channel that was active but constant keeps a trace of its energy: it is not dead."""
        raw = self.moments.hessian.matrix
        hessian = raw - self.weight * torch.outer(self.mean_hat, self.mean_hat)
        hessian.diagonal().copy_(torch.maximum(hessian.diagonal(), CONSTANT_SHARE * raw.diagonal()))
        gap = self.mean - self.mean_hat
        if self.reader is not None:
            gap = self.reader.double() @ gap
        shift = self.weight * torch.outer(gap + self.mean_gap, self.mean_hat)
        return Moments(Hessian(hessian), self.moments.cross - shift, self.moments.through)


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What one layer sees: two folds; a sample of its inputs `[n, in]` in the original (`probe`) and quantized network
    (`probe_hat`); the mean absolute input of each channel in the quantized network, `magnitude` `[in]` (or `[0]`: not asked for); and
    for the same sample what the quantized network's residual stream lacks, `probe_gap` `[n, out]` (None: not asked for)."""

    folds: tuple[Fold, Fold]
    probe: Tensor
    probe_hat: Tensor
    magnitude: Tensor
    probe_gap: Tensor | None = None

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
            a.reader,
            share * a.mean_gap + (1 - share) * b.mean_gap,
        )

    @cached_property
    def raw(self) -> "Views":
        """The moments about zero."""
        return Views(self.total.moments, (self.folds[0].moments, self.folds[1].moments))

    @cached_property
    def centred(self) -> "Views":
        """The moments about the means."""
        return Views(self.total.centred, (self.folds[0].centred, self.folds[1].centred))


class Views:
    """The same moments for several purposes. Layers that share an input share these objects and the factors within.

    `total`: both folds, float64. `single`: the same in float32, good enough where the Hessian is damped by a tenth of its mean
    diagonal or more. `folds`: the folds in float32, which steer choices.
    """

    def __init__(self, total: Moments, folds: tuple[Moments, Moments]) -> None:
        self.total = total
        self._folds = folds

    @cached_property
    def single(self) -> Moments:
        return self.total.single()

    @cached_property
    def folds(self) -> tuple[Moments, Moments]:
        return self._folds[0].single(), self._folds[1].single()


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
    languages: Sequence[str | None],
    names: Sequence[str] = (),
) -> list[Batch]:
    """Teacher-forced batches of `batch_size` utterances: first those of fold 0, then those of fold 1, each in the given order but
    language by language, none of which share a batch.

    (So that all but one batch at most belong to one fold, and their products are computed in one piece.)
    """
    if not model.pads_to_one_length:
        batch_size = 1  # padding would change what the network computes
    order = sorted(range(len(recordings)), key=lambda i: folds[i])
    batches = []
    for which in batches_by_language(order, languages, batch_size):
        heard = [recordings[i] for i in which]
        inputs, masks = model.forced_inputs(heard, [transcripts[i] for i in which], languages[which[0]])
        weights = {kind: mask.float() for kind, mask in masks.items()}
        if "frames" in weights:
            frames = torch.where(masks["frames"], weights["frames"], positions.padding)
            frames[:, torch.arange(frames.shape[1]) % positions.stride != 0] = 0
            weights["frames"] = frames
        called = tuple(names[i] for i in which) if names else ()
        batches.append(Batch(inputs, weights, torch.tensor([folds[i] for i in which]), called))
    return batches


def share_weights(network: nn.Module) -> nn.Module:
    """A copy of `network` with modules of its own that share all tensors; replace a parameter to change only the copy."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


class EncoderOutputs:
    """Remembers what a network's encoder returns, batch by batch, so that its decoder can run again for little.

    (What is remembered is what the paused forward passes hold anyway.)
    """

    def __init__(self, network: Any, encoder: str) -> None:
        self._encoder = encoder
        self._outputs: list[Any] = []
        self._again = share_weights(network)
        self._hook = network.get_submodule(encoder).register_forward_hook(self._remember)

    def _remember(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        self._outputs.append(output)

    def decoder_again(self) -> nn.Module:
        """The network as it was at first, with its encoder returning what was remembered, in the same order and once; where nothing was
        (its embedding is called before its encoder), the whole network. Nothing is remembered from now on."""
        self._hook.remove()
        if self._outputs:
            outputs, self._outputs = iter(self._outputs), []
            self._again.get_submodule(self._encoder).forward = lambda *_args, **_kwargs: next(outputs)
        return self._again


def layer_inputs(
    networks: Sequence[nn.Module],
    batches: Sequence[Batch],
    layers: Collection[Layer],
    *,
    magnitudes: bool = False,
    correct_stream: bool = False,
    before: Mapping[str, Callable[[], None]] = MappingProxyType({}),
) -> Iterator[tuple[Layer, LayerInputs]]:
    """Walk the networks in lockstep and yield every layer with its moments, in calling order.

    `networks`: the original and the one being quantized, or a single one (then the cross-moments are zero). Whatever the
    caller changes in the quantized network's layer takes effect for all layers after it. Layers that receive the very same
    tensors share one `LayerInputs`. `correct_stream`: for layers that write into a residual stream, what the stream lacks counts as an
    error of their outputs (WaterSIC, arXiv 2603.04956). `before`: what is to be done when all stand before the module of that name.
    Raises `CalibrationError` as `walk_together` does, and for NaN in a layer's inputs.
    """
    by_name = {layer.name: layer for layer in layers}
    recent: list[tuple[_Identity, LayerInputs]] = []
    writers = {layer.stream: layer.name for layer in layers if correct_stream and layer.stream is not None}
    stream_of: dict[str, Stop] = {}  # by the layer that will write into it; the paused forward passes hold the same tensors
    for stop in walk_together(networks, [batch.inputs for batch in batches], {*by_name, *before, *writers}):
        if stop.name in before:
            before[stop.name]()
            continue
        if stop.name in writers:
            stream_of[writers[stop.name]] = stop
            continue
        layer = by_name[stop.name]
        recent = [(identity, seen) for identity, seen in recent if identity.alive()]
        identity = _Identity(stop)
        known = next((seen for other, seen in recent if other.same(identity)), None)
        if known is None:
            stream = stream_of.pop(layer.name, None)
            known = _accumulate(stop, batches, layer, _reader(networks[0], layer, stream), magnitudes, stream)
            del stream
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
        return self._versions == other._versions and all(mine() is theirs() for mine, theirs in zip(self._refs, other._refs, strict=True))


def _reader(network: nn.Module, layer: Layer, stream: Stop | None) -> Tensor | None:
    """The layer's weight, if it alone reads its inputs and the cross-moment is to be one of outputs, or is cheaper so."""
    weight = network.get_parameter(f"{layer.name}.weight")
    cheaper = layer.residual_mlp and 2 * weight.shape[0] < weight.shape[1]
    return weight if cheaper or stream is not None else None


def _accumulate(
    stop: Stop, batches: Sequence[Batch], layer: Layer, reader: Tensor | None, magnitudes: bool, stream: Stop | None
) -> LayerInputs:
    width = stop.inputs[0][0].shape[-1]
    sums, probes, probes_hat = [_Sums(width, reader), _Sums(width, reader)], [], []
    probes_gap: list[Tensor] = []
    magnitude = torch.zeros(width if magnitudes else 0, dtype=torch.float64)
    for i, batch in enumerate(batches):
        seen = [stop.inputs[0][i], stop.inputs[-1][i]]
        same = seen[0] is seen[1] or torch.equal(*seen)
        if stream is not None:
            seen += [stream.inputs[0][i], stream.inputs[-1][i]]
        if layer.positions == "all":
            # Whatever their shape: such batches hold one utterance, without padding.
            seen = [rows.reshape(len(batch.folds), -1, rows.shape[-1]) for rows in seen]
            weights = torch.ones(seen[0].shape[:-1])
        else:
            weights = batch.weights[layer.positions]
        if seen[0].shape[:-1] != weights.shape:
            raise CalibrationError(
                f"{layer.name}: inputs of shape {tuple(seen[0].shape)} do not fit {tuple(weights.shape)} {layer.positions}"
            )
        for fold in (0, 1):
            counted = (weights > 0) & (batch.folds == fold).unsqueeze(1)
            root = weights[counted].sqrt().unsqueeze(1)
            rows_hat = _rows(seen[1], counted, root)
            rows = rows_hat if same else _rows(seen[0], counted, root)
            gap = None if stream is None else _rows(seen[2], counted, root) - _rows(seen[3], counted, root)
            sums[fold].add(rows, rows_hat, root, gap)
            if magnitudes:
                magnitude += (rows_hat.abs() * root).sum(0, dtype=torch.float64)
            every = max(1, len(rows) // PROBE_ROWS)
            probes.append(rows[::every].clone())
            probes_hat.append(probes[-1] if same else rows_hat[::every].clone())
            if gap is not None:
                probes_gap.append(gap[::every].clone())
    for total in sums:
        total.flush()
        if not bool(torch.isfinite(total.hessian).all()):
            raise CalibrationError(
                f"{layer.name}: its inputs hold NaN or infinite values{_culprits(stop, batches)}; check the audio and the model's weights"
            )
    magnitude /= max(sums[0].weight + sums[1].weight, 1e-12)
    return LayerInputs(
        (sums[0].fold(), sums[1].fold()),
        torch.cat(probes),
        torch.cat(probes_hat),
        magnitude.float(),
        torch.cat(probes_gap) if probes_gap else None,
    )


def _culprits(stop: Stop, batches: Sequence[Batch]) -> str:
    """Where values at this stop are not finite, by the names of the utterances."""
    found = list[str]()
    for i, batch in enumerate(batches):
        for row in stop.inputs:
            states = row[i].reshape(len(batch.folds), -1)
            bad = ~torch.isfinite(states).all(1)
            found += [name for name, is_bad in zip(batch.names, bad.tolist(), strict=False) if is_bad and name not in found]
    return f" in {', '.join(found)}" if found else ""


def _rows(inputs: Tensor, counted: Tensor, root: Tensor) -> Tensor:
    rows = inputs[counted].float()
    return rows if bool((root == 1).all()) else rows * root


class _Sums:
    """Running sums in float64 of float32 products over some thousand positions at a time."""

    def __init__(self, width: int, reader: Tensor | None) -> None:
        self.reader = reader
        self.hessian = torch.zeros(width, width, dtype=torch.float64)
        self.cross = torch.zeros(width if reader is None else len(reader), width, dtype=torch.float64)
        self.total = torch.zeros(width, dtype=torch.float64)
        self.total_hat = torch.zeros(width, dtype=torch.float64)
        self.total_gap = NO_GAP
        self.weight = 0.0
        self.waiting: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def add(self, rows: Tensor, rows_hat: Tensor, root: Tensor, gap: Tensor | None = None) -> None:
        root = root.squeeze(1).double()
        self.total += root @ rows.double()
        self.total_hat += root @ rows_hat.double()
        if gap is not None:
            self.total_gap = self.total_gap + root @ gap.double()
        self.weight += float(root.square().sum())
        self.waiting.append((rows, rows_hat, gap))
        if sum(len(rows) for rows, _, _ in self.waiting) >= PRODUCT_ROWS:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        same = all(rows is rows_hat and gap is None for rows, rows_hat, gap in self.waiting)
        rows_hat = torch.cat([rows_hat for _, rows_hat, _ in self.waiting])
        width = rows_hat.shape[1]
        for start in range(0, width, SYMMETRIC_BLOCK):
            block = slice(start, start + SYMMETRIC_BLOCK)
            self.hessian[block, start:] += rows_hat[:, block].T @ rows_hat[:, start:]
        if not same:
            difference = torch.cat([rows - rows_hat for rows, rows_hat, _ in self.waiting])
            if self.reader is not None:
                difference = difference @ self.reader.T
            gaps = [gap for _, _, gap in self.waiting if gap is not None]
            if gaps:
                difference += torch.cat(gaps)
            self.cross += difference.T @ rows_hat
        self.waiting = []

    def fold(self) -> Fold:
        upper = self.hessian.triu()
        hessian = upper + upper.triu(1).T
        mean, mean_hat, mean_gap = (
            total / self.weight if self.weight > 0 else total for total in (self.total, self.total_hat, self.total_gap)
        )
        moments = Moments(Hessian(hessian), self.cross, self.reader is not None)
        return Fold(moments, mean, mean_hat, self.weight, self.reader, mean_gap)
