"""The main job: recordings and a recipe in, a quantized recognizer out."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.data.folds import assign_folds
from sottovoce.errors import CalibrationError
from sottovoce.models.network import share_weights
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.awq import quantize_with_awq
from sottovoce.quantization.calibration_set import CalibrationSpeech, PositionWeights, make_batches
from sottovoce.quantization.install import round_all_layers, round_floats_to_float16
from sottovoce.quantization.layer import LayerReport, LayerResult
from sottovoce.quantization.plan import Plan, resolve
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.sequential import quantize_sequentially
from sottovoce.system.memory import keep_freed_memory
from sottovoce.system.progress import Progress, silent


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


@torch.no_grad()
def quantize_model(
    model: SpeechModel,
    recipe: Recipe,
    speech: CalibrationSpeech | None = None,
    *,
    batch_size: int = 8,
    seed: int = 0,
    solved: Mapping[str, LayerResult] = MappingProxyType({}),
    keep: Callable[[str, LayerResult], None] | None = None,
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
    if recipe.method.n_networks == 0:
        started = time.perf_counter()
        network: Any = share_weights(model.network)
        solutions = round_all_layers(model, network, plan)
    else:
        if speech is None:
            raise CalibrationError("this method calibrates on speech, and none was given")
        batches = make_batches(
            model,
            speech.recordings,
            speech.transcripts,
            assign_folds(speech.speakers),
            batch_size=batch_size,
            positions=PositionWeights(padding=recipe.padding_weight, stride=recipe.frame_subsampling),
            languages=speech.languages,
            names=speech.ids,
        )
        started = time.perf_counter()
        with keep_freed_memory():
            if recipe.method.kind == "awq":
                network, solutions = quantize_with_awq(model, plan, batches, progress)
            else:
                network, solutions = quantize_sequentially(model, plan, recipe, batches, solved, keep, progress)
    round_floats_to_float16(network, plan)
    return QuantizedModel(
        model=model.with_network(network),
        weights={name: solution.weight for name, solution in solutions.items()},
        reports=tuple(solution.report for solution in solutions.values()),
        plan=plan,
        recipe=recipe,
        calibration=None if speech is None or recipe.method.n_networks == 0 else _describe(speech, seed),
        timing=Timing(labels_s=speech.label_time_s if speech else 0.0, solving_s=time.perf_counter() - started),
    )


def _describe(speech: CalibrationSpeech, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "utterances": list(speech.ids),
        "seconds": round(speech.seconds, 3),
        "transcribed_by_the_model": speech.labelled,
        "cut_at_silence": list(speech.cut),
    }
