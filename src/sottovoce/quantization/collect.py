"""From recordings to the moments of every layer's inputs, in both the original and the quantized network."""

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from sottovoce.errors import CalibrationError
from sottovoce.models.batching import Batch
from sottovoce.models.layers import Layer
from sottovoce.quantization.curvature import PositionFactors
from sottovoce.quantization.lockstep import PausedLayer, run_in_lockstep
from sottovoce.quantization.spill import Spill
from sottovoce.quantization.statistics import FoldStatistics, LayerStatistics, MomentAccumulator
from sottovoce.system.devices import solving_device
from sottovoce.system.ranks import ALONE, Ranks

SAMPLED_ROWS = 48  # counted positions kept per batch and fold for measuring errors at the layers' outputs


def collect_statistics(
    networks: Sequence[nn.Module],
    batches: Sequence[Batch],
    layers: Collection[Layer],
    *,
    magnitudes: bool = False,
    compensate_residual: bool = False,
    before: Mapping[str, Callable[[], None]] = MappingProxyType({}),
    ranks: Ranks = ALONE,
    spill: Spill | None = None,
    factors: PositionFactors | None = None,
) -> Iterator[tuple[Layer, LayerStatistics]]:
    """Run the networks in lockstep and yield every layer with its statistics, in calling order.

    `networks`: the original and the one being quantized, or a single one (then the cross-moments are zero). Whatever the caller
    changes in the quantized network's layer takes effect for all layers after it. Layers that receive the very same tensors share
    one `LayerStatistics`. `compensate_residual`: for layers that write into a residual stream, what the stream lacks counts as an
    error of their outputs (WaterSIC, arXiv 2603.04956). `before`: callbacks by module name, run when all passes are paused in front
    of it. `ranks`: each has batches of its own, and rank 0 gets the statistics of all of them, the others of their own.
    `spill`: where paused passes leave their tensors. `factors`: what the weights of positions are multiplied with. Raises
    `CalibrationError` as `run_in_lockstep` does, and for NaN in a layer's inputs.
    """
    by_name = {layer.name: layer for layer in layers}
    recent: list[tuple[_Identity, LayerStatistics]] = []
    writers = {layer.residual: layer.name for layer in layers if compensate_residual and layer.residual is not None}
    residual_of: dict[str, PausedLayer] = {}  # by the layer that will write into it; the paused forward passes hold the same tensors
    for paused in run_in_lockstep(networks, [batch.inputs for batch in batches], {*by_name, *before, *writers}, spill):
        if paused.name in before:
            before[paused.name]()
            continue
        if paused.name in writers:
            residual_of[writers[paused.name]] = paused
            continue
        layer = by_name[paused.name]
        recent = [(identity, statistics) for identity, statistics in recent if identity.alive()]
        identity = _Identity(paused)
        known = next((statistics for other, statistics in recent if other.same(identity)), None)
        if known is None:
            residual = residual_of.pop(layer.name, None)
            known = _accumulate(
                paused,
                batches,
                layer,
                _projection(networks[0], layer, residual),
                magnitudes,
                residual,
                ranks,
                spill,
                None if factors is None else factors[layer.name],
            )
            del residual
            recent.append((identity, known))
        del paused
        yield layer, known


class _Identity:
    """Recognizes the same tensors at a later layer without keeping them alive."""

    def __init__(self, paused: PausedLayer) -> None:
        self._refs = [weakref.ref(tensor) for row in paused.inputs for tensor in row]
        self._versions = [tensor._version for row in paused.inputs for tensor in row]

    def alive(self) -> bool:
        return all(ref() is not None for ref in self._refs)

    def same(self, other: "_Identity") -> bool:
        return self._versions == other._versions and all(mine() is theirs() for mine, theirs in zip(self._refs, other._refs, strict=True))


def _projection(network: nn.Module, layer: Layer, residual: PausedLayer | None) -> Tensor | None:
    """The layer's weight, if it alone reads its inputs and the cross-moment is to be one of outputs, or is cheaper so."""
    weight = network.get_parameter(f"{layer.name}.weight")
    cheaper = layer.mlp_output and 2 * weight.shape[0] < weight.shape[1]
    return weight if cheaper or residual is not None else None


def _accumulate(
    paused: PausedLayer,
    batches: Sequence[Batch],
    layer: Layer,
    projection: Tensor | None,
    magnitudes: bool,
    residual: PausedLayer | None,
    ranks: Ranks,
    spill: Spill | None,
    factors: Sequence[Tensor] | None,
) -> LayerStatistics:
    with _loaded(paused, None, 0, spill):
        width, device = paused.inputs[0][0].shape[-1], paused.inputs[0][0].device
    sums = solving_device(device)
    if projection is not None:
        projection = projection.to(device)
    accumulators = (MomentAccumulator(width, projection, sums), MomentAccumulator(width, projection, sums))
    samples, magnitude = _Samples(sums, compensates=residual is not None), dict[int, Tensor]()
    for i, batch in enumerate(batches):
        with _loaded(paused, residual, i, spill):
            seen = _Seen(paused, residual, layer, batch, i, None if factors is None else factors[i])
            for fold in (0, 1):
                counted = seen.of_fold(fold)
                accumulators[fold].add(counted.rows, counted.quantized, counted.root, counted.residual, group=batch.group)
                place = 2 * batch.number + fold
                samples.add(place, counted)
                if magnitudes:
                    magnitude[place] = (counted.quantized.abs() * counted.root).to(sums).sum(0, dtype=torch.float64).unsqueeze(0)
                del counted  # before the next fold's rows are made
        if batch.closes:
            for accumulator in accumulators:
                accumulator.close_group()
    for accumulator in accumulators:
        accumulator.close_group()
        if not bool(torch.isfinite(accumulator.hessian).all()):
            raise CalibrationError(
                f"{layer.name}: its inputs hold NaN or infinite values{_culprits(paused, batches, spill)}; "
                "check the audio and the model's weights"
            )
        accumulator.join(ranks)
    folds = accumulators[0].finish(), accumulators[1].finish()
    total = torch.zeros(width if magnitudes else 0, dtype=torch.float64, device=sums)
    for part in ranks.gather_rows(magnitude).values() if magnitudes else ():
        total += part[0]
    return samples.with_statistics(folds, (total / max(folds[0].weight + folds[1].weight, 1e-12)).float(), ranks)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Counted:
    """The counted positions of one batch and fold, each times the root of its weight.

    `rows`, `quantized` `[n, in]`: inputs in both networks, one object where they are the same; `root` `[n, 1]`; `residual` `[n, out]`: what
    the residual stream lacks.
    """

    rows: Tensor
    quantized: Tensor
    root: Tensor
    residual: Tensor | None


class _Seen:
    """What a layer sees of a batch, the `number`-th of the passes. Raises `CalibrationError` for inputs of another shape."""

    def __init__(
        self, paused: PausedLayer, residual: PausedLayer | None, layer: Layer, batch: Batch, number: int, factors: Tensor | None
    ) -> None:
        seen = [paused.inputs[0][number], paused.inputs[-1][number]]
        self._same = seen[0] is seen[1] or torch.equal(*seen)
        if residual is not None:
            seen += [residual.inputs[0][number], residual.inputs[-1][number]]
        if layer.positions == "all":
            # Whatever their shape: such batches hold one utterance, without padding.
            seen = [rows.reshape(len(batch.folds), -1, rows.shape[-1]) for rows in seen]
            weights = torch.ones(seen[0].shape[:-1])
        else:
            weights = batch.weights[layer.positions]
        if seen[0].shape[:-1] != weights.shape:
            shapes = f"inputs of shape {tuple(seen[0].shape)} do not fit {tuple(weights.shape)} {layer.positions}"
            raise CalibrationError(f"{layer.name}: {shapes}")
        self._seen, self._folds = seen, batch.folds
        self._weights = weights if factors is None else weights * factors.reshape(weights.shape)

    def of_fold(self, fold: int) -> _Counted:
        """Return what a fold counts of the batch."""
        counted = (self._weights > 0) & (self._folds == fold).unsqueeze(1)
        original, quantized, *stream = self._seen
        root = self._weights[counted].sqrt().unsqueeze(1).to(original.device)
        counted = counted.to(original.device)
        quantized_rows = _rows(quantized, counted, root)
        return _Counted(
            rows=quantized_rows if self._same else _rows(original, counted, root),
            quantized=quantized_rows,
            root=root,
            residual=_rows(stream[0], counted, root) - _rows(stream[1], counted, root) if stream else None,
        )


class _Samples:
    """An even choice of the counted positions of every batch and fold, on one device; in order of batches when they are joined.

    `compensates`: what the residual stream lacks is kept too; on every rank, whatever it has seen.
    """

    def __init__(self, device: torch.device, *, compensates: bool) -> None:
        self._device, self._compensates = device, compensates
        self._rows, self._quantized, self._residual, self._roots = (dict[int, Tensor]() for _ in range(4))

    def add(self, place: int, counted: _Counted) -> None:
        """Keep some of the positions of a batch and fold, whose `place` in the order of all is given."""
        every = max(1, len(counted.rows) // SAMPLED_ROWS)
        self._rows[place] = counted.rows[::every].to(self._device, copy=True)
        self._roots[place] = counted.root[::every].to(self._device, copy=True)
        same = counted.quantized is counted.rows
        self._quantized[place] = self._rows[place] if same else counted.quantized[::every].to(self._device, copy=True)
        if counted.residual is not None:
            self._residual[place] = counted.residual[::every].to(self._device, copy=True)

    def with_statistics(self, folds: tuple[FoldStatistics, FoldStatistics], magnitude: Tensor, ranks: Ranks) -> LayerStatistics:
        """Return a layer's statistics: the sums of `folds` and `magnitude`, and the samples of all ranks."""
        rows, quantized, roots = (torch.cat(list(ranks.gather_rows(kept).values())) for kept in (self._rows, self._quantized, self._roots))
        residual = torch.cat(list(ranks.gather_rows(self._residual).values())) if self._compensates else None
        return LayerStatistics(folds, rows, quantized, magnitude, residual, roots)


def _loaded(paused: PausedLayer, residual: PausedLayer | None, batch: int, spill: Spill | None) -> AbstractContextManager[None]:
    """Have what the layer sees of one batch in memory."""
    rows = [*paused.inputs, *(residual.inputs if residual is not None else ())]
    return nullcontext() if spill is None else spill.loaded([row[batch] for row in rows])


def _culprits(paused: PausedLayer, batches: Sequence[Batch], spill: Spill | None) -> str:
    """Name the utterances whose values are not finite."""
    found = list[str]()
    for i, batch in enumerate(batches):
        for row in paused.inputs:
            with _loaded(paused, None, i, spill):
                bad = ~torch.isfinite(row[i].reshape(len(batch.folds), -1)).all(1)
            found += [name for name, is_bad in zip(batch.names, bad.tolist(), strict=False) if is_bad and name not in found]
    return f" in {', '.join(found)}" if found else ""


def _rows(inputs: Tensor, counted: Tensor, root: Tensor) -> Tensor:
    rows = inputs[counted].float()
    return rows if bool((root == 1).all()) else rows * root
