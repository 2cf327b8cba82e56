"""From recordings to the moments of every layer's inputs, in both the original and the quantized network."""

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType

import torch
from torch import Tensor, nn

from sottovoce.errors import CalibrationError
from sottovoce.models.batching import Batch
from sottovoce.models.layers import Layer
from sottovoce.quantization.curvature import PositionFactors
from sottovoce.quantization.lockstep import PausedLayer, run_in_lockstep
from sottovoce.quantization.spill import Spill
from sottovoce.quantization.statistics import LayerStatistics, MomentAccumulator
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
    samples, quantized_samples, residual_samples, roots, magnitude = (dict[int, Tensor]() for _ in range(5))
    for i, batch in enumerate(batches):
        with _loaded(paused, residual, i, spill):
            seen = [paused.inputs[0][i], paused.inputs[-1][i]]
            same = seen[0] is seen[1] or torch.equal(*seen)
            if residual is not None:
                seen += [residual.inputs[0][i], residual.inputs[-1][i]]
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
            if factors is not None:
                weights = weights * factors[i].reshape(weights.shape)
            for fold in (0, 1):
                counted = (weights > 0) & (batch.folds == fold).unsqueeze(1)
                root = weights[counted].sqrt().unsqueeze(1).to(device)
                counted = counted.to(device)
                quantized_rows = _rows(seen[1], counted, root)
                rows = quantized_rows if same else _rows(seen[0], counted, root)
                error = None if residual is None else _rows(seen[2], counted, root) - _rows(seen[3], counted, root)
                accumulators[fold].add(rows, quantized_rows, root, error, group=batch.group)
                place = 2 * batch.number + fold
                if magnitudes:
                    magnitude[place] = (quantized_rows.abs() * root).to(sums).sum(0, dtype=torch.float64).unsqueeze(0)
                every = max(1, len(rows) // SAMPLED_ROWS)
                samples[place] = rows[::every].to(sums, copy=True)
                roots[place] = root[::every].to(sums, copy=True)
                quantized_samples[place] = samples[place] if same else quantized_rows[::every].to(sums, copy=True)
                if error is not None:
                    residual_samples[place] = error[::every].to(sums, copy=True)
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
    return LayerStatistics(
        folds,
        torch.cat(list(ranks.gather_rows(samples).values())),
        torch.cat(list(ranks.gather_rows(quantized_samples).values())),
        (total / max(folds[0].weight + folds[1].weight, 1e-12)).float(),
        torch.cat(list(ranks.gather_rows(residual_samples).values())) if residual is not None else None,
        torch.cat(list(ranks.gather_rows(roots).values())),
    )


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
