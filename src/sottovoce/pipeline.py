"""The main job: recordings and a recipe in, a quantized recogniser out."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.audio import SAMPLE_RATE, split_at_silence
from sottovoce.calibrate import (
    EncoderOutputs,
    LayerInputs,
    PositionWeights,
    assign_folds,
    layer_inputs,
    make_batches,
    share_weights,
)
from sottovoce.core.awq import divide_outputs, scale_inputs, search_scales
from sottovoce.core.fade import NO_CORRECTION, diagnostic_strengths, held_out_choice, reliability_score
from sottovoce.core.measure import relative_weight_error
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.rtn import rtn
from sottovoce.data import DataSet
from sottovoce.errors import CalibrationError
from sottovoce.memory import keep_freed_memory
from sottovoce.models.base import DETECT, Batch, Layer, SpeechModel, batches_by_language
from sottovoce.progress import Progress, silent
from sottovoce.recipe import Plan, Recipe, resolve
from sottovoce.solve import LayerReport, Solution, solve_layer, solve_rounded, with_final_inputs

DIAGNOSTIC_UTTERANCES = 16  # utterances on which the rule "diagnostic" takes its first look
DIAGNOSTIC_DAMPING = 0.1  # of that first look
LABEL_BATCH = 16  # utterances transcribed at once


@dataclass(frozen=True, kw_only=True)
class CalibrationSpeech:
    """Prepared calibration speech: 16 kHz recordings, their token ids, and how they came about.

    `labelled`: how many transcripts the model made itself. `cut`: ids of recordings that were cut at silence because they
    were longer than one forward pass takes.
    """

    ids: tuple[str, ...]
    recordings: tuple[np.ndarray, ...]
    transcripts: tuple[tuple[int, ...], ...]
    languages: tuple[str | None, ...]
    speakers: tuple[str | None, ...]
    labelled: int
    cut: tuple[str, ...]
    seconds: float
    label_time_s: float


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall-clock seconds: transcribing the calibration speech, and the walk with all solving."""

    labels_s: float
    solving_s: float


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedModel:
    """The result: `model` computes with dequantized weights; `weights` holds the codes by layer name.

    `reports`: diagnostics in the order the layers were solved. `calibration`: a description of the speech, None for RTN.
    """

    model: SpeechModel
    weights: dict[str, QuantizedTensor]
    reports: tuple[LayerReport, ...]
    plan: Plan
    recipe: Recipe
    calibration: dict[str, Any] | None
    timing: Timing


def prepare_speech(
    model: SpeechModel,
    data: DataSet,
    *,
    language: str | None = None,
    labels: Mapping[str, Sequence[int]] | None = None,
    keep: Callable[[Mapping[str, Sequence[int]]], None] | None = None,
    progress: Progress = silent,
) -> CalibrationSpeech:
    """Read the recordings, cut long ones, and find what is said in each.

    A recording with a known text is taught with it; others with the model's own greedy transcript. `language`: of those that have
    none of their own; "auto": found out by the model. `labels`: such transcripts
    from an earlier run, as token ids by recording; they are not made again. `keep`: is given those that
    are made, at once. Raises `AudioError` for a recording that cannot
    be used.
    """
    ids, recordings, texts, speakers, languages, cut = [], [], [], [], list[str | None](), []
    for utterance in data:
        samples = utterance.samples()
        pieces = split_at_silence(samples, model.longest_s)
        if len(pieces) > 1:
            cut.append(utterance.id)
        for i, piece in enumerate(pieces):
            ids.append(utterance.id if len(pieces) == 1 else f"{utterance.id}#{i}")
            recordings.append(piece)
            languages.append(utterance.language or language)
            texts.append(utterance.text if len(pieces) == 1 else None)
            speakers.append(utterance.speaker or (utterance.id if len(pieces) > 1 else None))
    if len(recordings) < 2:
        raise CalibrationError(f"{data.name}: {len(recordings)} utterance; at least two are needed, better a hundred")
    started = time.perf_counter()
    transcripts: list[tuple[int, ...]] = [() if text is None else tuple(model.tokens(text)) for text in texts]
    missing = [i for i, text in enumerate(texts) if text is None]
    for i in missing:
        transcripts[i] = tuple((labels or {}).get(ids[i], ()))
    unknown = {i for i in missing if labels is None or ids[i] not in labels}
    # A language that is to be found out is needed for those with a known text as well.
    heard = [i for i in range(len(ids)) if i in unknown or languages[i] == DETECT]
    done = 0
    for which in batches_by_language(heard, languages, LABEL_BATCH):
        progress("transcribing calibration speech", done, len(heard))
        encoded = model.encode(model.features([recordings[i] for i in which]))
        decoded, found = model.decode_by_language(encoded, languages[which[0]])
        made = {i: tuple(tokens) for i, (tokens, _) in zip(which, decoded, strict=True) if i in unknown}
        for i, language_found in zip(which, found, strict=True):
            languages[i], transcripts[i] = language_found, made.get(i, transcripts[i])
        if keep is not None:
            keep({ids[i]: transcript for i, transcript in made.items()})
        done += len(which)
    return CalibrationSpeech(
        ids=tuple(ids),
        recordings=tuple(recordings),
        transcripts=tuple(transcripts),
        languages=tuple(languages),
        speakers=tuple(speakers),
        labelled=len(missing),
        cut=tuple(cut),
        seconds=sum(map(len, recordings)) / SAMPLE_RATE,
        label_time_s=time.perf_counter() - started,
    )


@torch.no_grad()
def quantize_model(
    model: SpeechModel,
    recipe: Recipe,
    speech: CalibrationSpeech | None = None,
    *,
    batch_size: int = 8,
    seed: int = 0,
    solved: Mapping[str, Solution] = MappingProxyType({}),
    keep: Callable[[str, Solution], None] | None = None,
    progress: Progress = silent,
) -> QuantizedModel:
    """Quantize `model` in memory by `recipe`; `model` itself stays as it is.

    `solved`: the first layers' solutions from a run of the same inputs that was stopped; `keep`: is given each further one as it is
    found. (By the methods that walk in lockstep; the others solve all layers at once.)

    `speech` is needed by every method but RTN. `seed` is what it was drawn by, for the record.
    Raises `RecipeError` for a recipe that does not fit the model, and `CalibrationError` if a planned layer is not reached
    exactly once or its inputs are not finite.
    """
    plan = resolve(model, recipe)
    if recipe.method.streams == 0:
        started = time.perf_counter()
        network: Any = share_weights(model.network)
        solutions = _round_all(model, network, plan)
    else:
        if speech is None:
            raise CalibrationError("this method calibrates on speech, and none was given")
        batches = make_batches(
            model,
            speech.recordings,
            speech.transcripts,
            assign_folds(speech.speakers),
            batch_size=batch_size,
            positions=PositionWeights(padding=recipe.padding_weight, stride=recipe.frame_stride),
            languages=speech.languages,
            names=speech.ids,
        )
        started = time.perf_counter()
        with keep_freed_memory():
            if recipe.method.kind == "awq":
                network, solutions = _solve_awq(model, plan, batches, progress)
            else:
                network, solutions = _solve_in_lockstep(model, plan, recipe, batches, solved, keep, progress)
    _round_to_half(network, plan)
    return QuantizedModel(
        model=model.with_network(network),
        weights={name: solution.weight for name, solution in solutions.items()},
        reports=tuple(solution.report for solution in solutions.values()),
        plan=plan,
        recipe=recipe,
        calibration=None if speech is None or recipe.method.streams == 0 else _describe(speech, seed),
        timing=Timing(labels_s=speech.label_time_s if speech else 0.0, solving_s=time.perf_counter() - started),
    )


def _solve_in_lockstep(
    model: SpeechModel,
    plan: Plan,
    recipe: Recipe,
    batches: Sequence[Batch],
    solved: Mapping[str, Solution],
    keep: Callable[[str, Solution], None] | None,
    progress: Progress,
) -> tuple[Any, dict[str, Solution]]:
    """GPTQ and all that is built on it: each layer is solved when both networks have reached it, and installed at once."""
    network: Any = share_weights(model.network)
    layers = [layer for layer, _ in plan.steps]
    solutions = dict(solved)
    for layer in layers:
        if layer.name in solutions:
            _install(model, network, layer, solutions[layer.name])
    strengths = _first_look(model, plan, batches) if recipe.method.strength == "diagnostic" else {}

    def solve(layer: Layer, inputs: LayerInputs, identity: float = 0.0) -> None:
        progress(layer.name, len(solutions), len(layers))
        module = network.get_submodule(layer.name)
        solutions[layer.name] = solve_layer(
            layer,
            module.weight,
            module.bias,
            inputs,
            plan.grid(layer.name),
            recipe.method,
            strength=strengths.get(layer.name),
            identity=identity,
        )
        _install(model, network, layer, solutions[layer.name])
        if keep is not None:
            keep(layer.name, solutions[layer.name])

    # A head that is also the token embedding is solved when the decoder is about to look its first tokens up: so the decoder's layers
    # see the embedding as it will be, and correct for it. Its inputs come from a decoder that is not quantized yet.
    tied = next((layer for layer in layers if layer.name == model.head and model.tied), None)
    before: dict[str, Callable[[], None]] = {}
    if tied is not None and tied.name not in solutions:
        encoded = EncoderOutputs(network, model.encoder)

        def solve_tied(layer: Layer = tied) -> None:
            for _, inputs in layer_inputs([encoded.decoder_again()], batches, [layer]):
                solve(layer, inputs, recipe.head_identity)

        before[model.embedding] = solve_tied
    networks = [model.network, network] if recipe.method.streams == 2 else [network]
    missing = [layer for layer in layers if layer.name not in solutions or layer is tied]
    correct_stream = recipe.method.correct_stream and len(networks) == 2
    for layer, inputs in layer_inputs(networks, batches, missing, correct_stream=correct_stream, before=before):
        if layer is tied:
            head = solutions.pop(layer.name)  # last in the order of calls
            solutions[layer.name] = with_final_inputs(head, model.module(layer.name).weight, inputs)
        else:
            solve(layer, inputs)
    progress("", len(layers), len(layers))
    return network, solutions


def _first_look(model: SpeechModel, plan: Plan, batches: Sequence[Batch]) -> dict[str, float]:
    """Strengths by the rule "diagnostic": vulnerability and reliability of every layer on a few utterances."""
    count, few = 0, []
    for batch in batches:
        few.append(batch)
        count += len(batch.folds)
        if count >= DIAGNOSTIC_UTTERANCES:
            break
    vulnerability, reliability = dict[str, float](), dict[str, float]()
    for layer, inputs in layer_inputs([model.network], few, [layer for layer, _ in plan.steps]):
        weight, grid = model.module(layer.name).weight, plan.grid(layer.name)
        held_out = held_out_choice(weight, inputs.raw.folds, grid, pairs=[(NO_CORRECTION, DIAGNOSTIC_DAMPING)])
        vulnerability[layer.name] = relative_weight_error(weight, rtn(weight, grid).dequantize())
        reliability[layer.name] = reliability_score(held_out.calibrated_error, held_out.rounded_error)
    strengths: dict[str, float] = {}
    for encoder in (True, False):
        names = [layer.name for layer, _ in plan.steps if (layer.part == "encoder") == encoder]
        if names:
            values = diagnostic_strengths([vulnerability[n] for n in names], [reliability[n] for n in names])
            strengths.update(zip(names, values, strict=True))
    return strengths


def _solve_awq(model: SpeechModel, plan: Plan, batches: Sequence[Batch], progress: Progress) -> tuple[Any, dict[str, Solution]]:
    """Search scales on the original network's inputs, fold them all, round what comes out."""
    network: Any = share_weights(model.network)
    layers = [layer for layer, _ in plan.steps]
    seen: dict[str, LayerInputs] = {}
    for layer, inputs in layer_inputs([model.network], batches, layers, magnitudes=True):
        progress(layer.name, len(seen), len(layers))
        seen[layer.name] = inputs
    for mapping in model.awq_mappings():
        names = [name for name in mapping.targets if name in seen]
        if len(names) < len(mapping.targets):
            continue  # a target stays in floating point: its inputs must stay as they are
        found = search_scales(
            [model.module(name).weight for name in names],
            [seen[name].total.moments.hessian.matrix.float() for name in names],
            [plan.grid(name) for name in names],
            seen[names[0]].magnitude,
        )
        source = network.get_submodule(mapping.source)
        weight, bias = divide_outputs(source.weight, getattr(source, "bias", None), found.scales)
        _set_parameters(source, weight, bias)
        for name in names:
            module = network.get_submodule(name)
            _set_parameters(module, scale_inputs(module.weight, found.scales), module.bias)
    progress("", len(layers), len(layers))
    return network, _round_all(model, network, plan)


def _round_all(model: SpeechModel, network: Any, plan: Plan) -> dict[str, Solution]:
    """Round every planned layer of `network` to nearest and install what comes out."""
    solutions = {}
    for layer, grid in plan.steps:
        solutions[layer.name] = solve_rounded(layer, network.get_submodule(layer.name).weight, grid)
        _install(model, network, layer, solutions[layer.name])
    return solutions


def _install(model: SpeechModel, network: Any, layer: Layer, solution: Solution) -> None:
    module = network.get_submodule(layer.name)
    _set_parameters(module, solution.weight.dequantize(), module.bias if solution.bias is None else solution.bias)
    if layer.name == model.head and model.tied:
        network.get_submodule(model.embedding).weight = module.weight


def _round_to_half(network: nn.Module, plan: Plan) -> None:
    """What stays in floating point is stored as float16: round it now, so that what is measured is what is written."""
    # Planned weights stay, and with them the embedding that is tied to a planned head.
    planned = [network.get_parameter(f"{layer.name}.weight") for layer, _ in plan.steps]
    done = {id(parameter): parameter for parameter in planned}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in done:
                done[id(parameter)] = nn.Parameter(parameter.half().float(), requires_grad=False)
                done[id(done[id(parameter)])] = done[id(parameter)]
            setattr(module, name, done[id(parameter)])


def _set_parameters(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """New parameters, since the old tensors are shared with the original network."""
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)


def _describe(speech: CalibrationSpeech, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "utterances": list(speech.ids),
        "seconds": round(speech.seconds, 3),
        "transcribed_by_the_model": speech.labelled,
        "cut_at_silence": list(speech.cut),
    }


def environment() -> dict[str, str]:
    """Versions that can influence the result."""
    packages = ("sottovoce", "torch", "transformers", "compressed-tensors", "safetensors", "soxr", "soundfile")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
