"""Quantize layer by layer in calling order, each on the inputs that the layers before it give."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sottovoce.core.error_metrics import relative_weight_error
from sottovoce.core.fade import NO_CORRECTION, diagnostic_strengths, held_out_choice, reliability_score
from sottovoce.core.rtn import rtn
from sottovoce.models.batching import Batch
from sottovoce.models.layers import Layer
from sottovoce.models.network import EncoderOutputs, share_weights
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.collect import collect_statistics
from sottovoce.quantization.install import install_layer
from sottovoce.quantization.layer import LayerResult, quantize_layer, with_final_statistics
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.statistics import LayerStatistics
from sottovoce.system.progress import Progress

DIAGNOSTIC_UTTERANCES = 16  # utterances on which the rule "diagnostic" takes its first look


DIAGNOSTIC_DAMPING = 0.1  # of that first look


def quantize_sequentially(
    model: SpeechModel,
    plan: Plan,
    recipe: Recipe,
    batches: Sequence[Batch],
    solved: Mapping[str, LayerResult],
    keep: Callable[[str, LayerResult], None] | None,
    progress: Progress,
) -> tuple[Any, dict[str, LayerResult]]:
    """GPTQ and all that is built on it: each layer is solved when both networks have reached it, and installed at once."""
    network: Any = share_weights(model.network)
    layers = [layer for layer, _ in plan.layers]
    solutions = dict(solved)
    for layer in layers:
        if layer.name in solutions:
            install_layer(model, network, layer, solutions[layer.name])
    strengths = diagnostic_pass(model, plan, batches) if recipe.method.strength == "diagnostic" else {}

    def solve(layer: Layer, inputs: LayerStatistics, identity: float = 0.0) -> None:
        progress(layer.name, len(solutions), len(layers))
        module = network.get_submodule(layer.name)
        solutions[layer.name] = quantize_layer(
            layer,
            module.weight,
            module.bias,
            inputs,
            plan.grid(layer.name),
            recipe.method,
            strength=strengths.get(layer.name),
            identity=identity,
        )
        install_layer(model, network, layer, solutions[layer.name])
        if keep is not None:
            keep(layer.name, solutions[layer.name])

    # A head that is also the token embedding is solved when the decoder is about to look its first tokens up: so the decoder's layers
    # see the embedding as it will be, and correct for it. Its inputs come from a decoder that is not quantized yet.
    tied = next((layer for layer in layers if layer.name == model.head and model.tied), None)
    before: dict[str, Callable[[], None]] = {}
    if tied is not None and tied.name not in solutions:
        encoded = EncoderOutputs(network, model.encoder)

        def solve_tied(layer: Layer = tied) -> None:
            for _, inputs in collect_statistics([encoded.decoder_again()], batches, [layer]):
                solve(layer, inputs, recipe.head_embedding_weight)

        before[model.embedding] = solve_tied
    networks = [model.network, network] if recipe.method.n_networks == 2 else [network]
    missing = [layer for layer in layers if layer.name not in solutions or layer is tied]
    compensate_residual = recipe.method.compensate_residual and len(networks) == 2
    for layer, inputs in collect_statistics(networks, batches, missing, compensate_residual=compensate_residual, before=before):
        if layer is tied:
            head = solutions.pop(layer.name)  # last in the order of calls
            solutions[layer.name] = with_final_statistics(head, model.module(layer.name).weight, inputs)
        else:
            solve(layer, inputs)
    progress("", len(layers), len(layers))
    return network, solutions


def diagnostic_pass(model: SpeechModel, plan: Plan, batches: Sequence[Batch]) -> dict[str, float]:
    """Strengths by the rule "diagnostic": vulnerability and reliability of every layer on a few utterances."""
    count, few = 0, []
    for batch in batches:
        few.append(batch)
        count += len(batch.folds)
        if count >= DIAGNOSTIC_UTTERANCES:
            break
    vulnerability, reliability = dict[str, float](), dict[str, float]()
    for layer, inputs in collect_statistics([model.network], few, [layer for layer, _ in plan.layers]):
        weight, grid = model.module(layer.name).weight, plan.grid(layer.name)
        held_out = held_out_choice(weight, inputs.raw.folds, grid, pairs=[(NO_CORRECTION, DIAGNOSTIC_DAMPING)])
        vulnerability[layer.name] = relative_weight_error(weight, rtn(weight, grid).dequantize())
        reliability[layer.name] = reliability_score(held_out.calibrated_error, held_out.rounded_error)
    strengths: dict[str, float] = {}
    for encoder in (True, False):
        names = [layer.name for layer, _ in plan.layers if (layer.part == "encoder") == encoder]
        if names:
            values = diagnostic_strengths([vulnerability[n] for n in names], [reliability[n] for n in names])
            strengths.update(zip(names, values, strict=True))
    return strengths
