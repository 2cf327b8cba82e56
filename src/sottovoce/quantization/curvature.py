"""How much the end loss minds an error at each position of a layer's inputs (GuidedQuant, arXiv 2505.07004, with one group of channels).

With targets drawn from the original's own predictions, the expected square of the gradient of their log-probability at a layer's outputs
`z` is the diagonal of the Fisher matrix there. Its mean over the channels,

    s_t = mean_j (d log p(target) / d z_tj)^2,

tells what an error at position t costs in divergence. It goes into the weights of the positions, and so into the Hessian and the
cross-moments:

    w_t <- w_t ((1 - share) + share c_t),   c_t = min(s_t, 99th percentile) / its mean

over the counted positions of an utterance. So every utterance keeps its weight, and few positions cannot take all of it.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sottovoce.models.batching import Batch
from sottovoce.models.layers import Layer
from sottovoce.models.speech_model import SpeechModel
from sottovoce.system.progress import Progress

PERCENTILE = 0.99  # of the curvature of an utterance's positions: what is above counts as that much

PositionFactors = dict[str, list[Tensor]]
"""By layer, for every batch: what the weights of its positions are multiplied with, `[B, T]`."""


def position_factors(
    model: SpeechModel, batches: Sequence[Batch], layers: Collection[Layer], *, share: float, seed: int, progress: Progress
) -> PositionFactors:
    """Take every utterance through the original forwards and backwards, and return what its positions count.

    `share`, 0 to 1: of the weights that follows the curvature. Layers that read the same tensor have the mean of their curvatures.
    `seed`: of the targets that are drawn.
    """
    found: PositionFactors = {layer.name: [] for layer in layers}
    utterances = sum(len(batch.folds) for batch in batches)
    done = 0
    for batch in batches:
        rows: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
        for i in range(len(batch.folds)):
            progress("curvature of the end loss", done, utterances)
            generator = torch.Generator().manual_seed((seed * 1_000_003 + batch.number * 1009 + i) % 2**63)
            curvature = _curvature(model, _row(batch.inputs, i, len(batch.folds)), _counted(batch, i), layers, generator)
            for layer in layers:
                own = curvature[layer.name]
                weights = torch.ones(len(own)) if layer.positions == "all" else batch.weights[layer.positions][i]
                rows[layer.name].append(_factor(own, weights > 0, share))
            done += 1
        for name, own_rows in rows.items():
            found[name].append(torch.stack(own_rows))
    progress("curvature of the end loss", utterances, utterances)
    return found


def _counted(batch: Batch, i: int) -> Tensor | None:
    """Which tokens of an utterance count, bool `[T]`; None: all, in a family that says nothing of its positions."""
    return batch.weights["tokens"][i] > 0 if "tokens" in batch.weights else None


def _row(inputs: dict[str, Any], i: int, count: int) -> dict[str, Any]:
    """The inputs of one utterance of a batch of `count`; in a batch of one they are what they are."""
    if count == 1:
        return inputs
    return {name: value[i : i + 1] if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _factor(curvature: Tensor, counted: Tensor, share: float) -> Tensor:
    """What the positions of one utterance are multiplied with: 1 on average over the counted ones."""
    factor = torch.ones_like(curvature)
    own = curvature[counted]
    if len(own) and float(own.sum()) > 0:
        capped = own.clamp(max=float(torch.quantile(own, PERCENTILE)))
        if (mean := float(capped.mean())) > 0:
            factor[counted] = (1 - share) + share * capped / mean
    return factor


def _curvature(
    model: SpeechModel, inputs: dict[str, Any], predicted: Tensor | None, layers: Collection[Layer], generator: torch.Generator
) -> dict[str, Tensor]:
    """The mean squared gradient at every position of every layer's outputs, `[T]` float32 on the CPU, of one utterance."""
    network: Any = model.network
    squares = dict[str, Tensor]()
    reads = dict[str, Tensor]()  # what a layer reads; kept, so that no other tensor takes its id
    logits = list[Tensor]()

    def keep(name: str, gradient: Tensor) -> None:
        squares[name] = gradient.float().square().mean(-1).reshape(-1).cpu()

    def watch(name: str, counts: bool) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            if counts:
                reads[name] = args[0]
                output.register_hook(partial(keep, name))  # type: ignore[no-untyped-call]
            if name == model.head:
                logits.append(output)
            return output

        return hook

    names = {layer.name for layer in layers}
    hooks = [network.get_submodule(name).register_forward_hook(watch(name, name in names)) for name in sorted(names | {model.head})]
    try:
        with torch.enable_grad():
            network(**inputs)
            rows = logits[0][0] if predicted is None else logits[0][0][predicted.to(logits[0].device)]
            log_p = torch.log_softmax(rows.float(), dim=-1)
            targets = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(log_p.device)
            log_p.gather(1, targets).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
    shared = dict[int, list[str]]()
    for name, tensor in reads.items():
        shared.setdefault(id(tensor), []).append(name)
    found = dict[str, Tensor]()
    for members in shared.values():
        reached = [squares[name] for name in members if name in squares]
        for name in members:
            found[name] = torch.stack(reached).mean(0) if reached else torch.zeros(reads[name].shape[:-1].numel())
    return found
