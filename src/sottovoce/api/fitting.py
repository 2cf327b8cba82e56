"""The verb `fit`: the formats that lose least in a given size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sottovoce.api.inputs import Sources, calibration_sets, check_counts, check_written, drawn_count, loaded_original
from sottovoce.backends.export import export, refuse_existing_export
from sottovoce.backends.registry import DEFAULT_TARGET, backend_named
from sottovoce.checkpoint.resume import exclusive_run, has_unfinished_run
from sottovoce.checkpoint.save import History, output_folder, refuse_existing, save_quantized
from sottovoce.data.mixture import Weighting, mix
from sottovoce.errors import RecipeError
from sottovoce.fitting.attempt import Quantizer
from sottovoce.fitting.run import Fit, FitSettings
from sottovoce.fitting.size import file_bytes, parse_size
from sottovoce.fitting.speech import prepare, split
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.fit_record import FitGoal, FitRecord
from sottovoce.quantization.methods import GPTQ
from sottovoce.quantization.pipeline import QuantizedModel, brought_home
from sottovoce.quantization.plan_file import PLAN, write_plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.devices import Placement
from sottovoce.system.plain_data import to_plain
from sottovoce.system.progress import Progress, silent
from sottovoce.system.torchrun import refuse_ranks
from sottovoce.system.versions import environment

DEFAULT_HELD_OUT = 16  # utterances of each fold on which a fit measures


@dataclass(frozen=True, eq=False, kw_only=True)
class FitResult:
    """`quantized`: the model in memory. `record`: the schedule, what it was predicted to cost and what it costs. `file`: the file of the
    target's runtime, or the folder itself where the runtime reads that."""

    quantized: QuantizedModel
    record: FitRecord
    file: Path


def fit(
    model: str | Path | SpeechModel,
    out: str | Path,
    *,
    max_size: str | float | None = None,
    max_kl: float | None = None,
    max_wer_increase: float | None = None,
    target: str = DEFAULT_TARGET,
    calibration: Sources,
    recipe: Recipe | None = None,
    weighting: Weighting = "hours",
    utterances: int = 128,
    held_out: int = DEFAULT_HELD_OUT,
    swaps: int = 20,
    guarded: int = 50,
    baselines: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    language: str | None = None,
    verify: bool = True,
    save_plan: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    placement: Placement = Placement(),  # noqa: B008 - a frozen value
    progress: Progress = silent,
) -> FitResult:
    """Choose a format for every layer so that the file of `target` fits into `max_size` and loses least, and write it.

    One of three is given: `max_size` (bytes, or text such as "30MB"), `max_kl` (nats per token: then the smallest file that keeps it), or
    `max_wer_increase` (more errors in 100 words than the original on held-out speech, whose texts are needed: the smallest file that
    keeps it there). Writes the quantized folder `out` and, for a runtime with files of its own, that file beside it. Of `calibration`,
    `utterances` are calibrated on and three times `held_out` others, of other speakers, are measured on; transcripts are needed for the
    last goal only. `recipe`: its method must go layer by layer (gptq, qep, fade); its formats are not used. `swaps`: tried at most after
    the solution. `guarded`: long recordings decoded at the end; a new loop makes the costliest unit of the encoder larger. `baselines`:
    also measure 20 random schedules, one by hand and one by plain sensitivities. `placement`: where the model computes (see
    `find_placement`). `verify`: try the file in its runtime. `save_plan`: also write the plan to this JSON file. `resume`: go on where
    the same fit was stopped.
    Raises a `SottovoceError` and leaves `out` as it was; `RecipeError` names the smallest size if `max_size` is too small.
    """
    refuse_ranks("a fit")
    check_counts(utterances=utterances, held_out=held_out)
    folder = output_folder(out)
    refuse_existing(folder, overwrite=overwrite)
    goal = fit_goal(max_size, max_kl, max_wer_increase)
    backend = backend_named(target)
    replaces = overwrite or (resume and has_unfinished_run(folder))  # which may have been stopped after its file was written
    named = Path(out).expanduser().absolute()  # the file stands beside this name, even if that is a link to a folder elsewhere
    file = folder if backend.write is None else named.parent / backend.file_name.format(named.name)
    if file != folder:
        refuse_existing_export(file, backend, overwrite=replaces)
    check_written([(save_plan, PLAN)], models=[model, folder], data=calibration, others=[folder, file])
    recipe = recipe or Recipe()
    if not isinstance(recipe.method, GPTQ):
        raise RecipeError(f"a fit goes layer by layer, and {recipe.method.title} does not; choose gptq, qep or fade")
    speech_model = loaded_original(model)
    settings = FitSettings(swaps=swaps, guarded=guarded, baselines=baselines)
    running = speech_model.placed(placement, keep_float32=True)
    fitting = Fit(running, backend, goal, settings, home=speech_model)
    sets = calibration_sets(calibration, utterances + 3 * held_out)
    count = drawn_count(sets, utterances + 3 * held_out)
    sample, folds = split(mix(sets, count=count, seed=seed, weighting=weighting), utterances, held_out)
    inputs = {
        "model": speech_model.digest(),
        "recipe": to_plain(recipe),
        "goal": to_plain(goal),
        "target": backend.name,
        "settings": to_plain(settings),
        "calibration": sample.digest(),
        "held_out": {name: fold.digest() for name, fold in folds.items()},
        "seed": seed,
        "batch_size": batch_size,
        "language": language,
        "environment": environment() | {"threads": str(torch.get_num_threads())},
        "device": str(placement),
    }
    with exclusive_run(folder, resume=resume, overwrite=overwrite) as state:
        state.begin(inputs, resume=resume)
        speech = prepare(
            running,
            sample,
            folds,
            guarded=guarded,
            max_wer_increase=max_wer_increase,
            language=language,
            state=state,
            progress=progress,
        )
        quantizer = Quantizer(
            running,
            recipe,
            speech.calibration,
            fitting.units,
            batch_size=batch_size,
            seed=seed,
            run=state,
            progress=progress,
        )
        result, record = fitting.run(quantizer, speech, state, progress)
        result = brought_home(replace(result, recipe=replace(recipe, format=result.plan.main_format)), speech_model)
        if file != folder:
            written = export(result, backend.name, file, verify=verify, overwrite=replaces, language=language, progress=progress)
            record = replace(record, bytes=written.bytes)
        else:
            record = replace(record, bytes=file_bytes(speech_model, result.plan, backend))
        save_quantized(result, folder, overwrite=overwrite, history=History(fit=record, chosen_on=speech.chosen_on))
    if save_plan is not None:
        write_plan(save_plan, result.plan)
    return FitResult(quantized=result, record=record, file=file)


def fit_goal(max_size: str | float | None, max_kl: float | None, max_wer_increase: float | None) -> FitGoal:
    """Return the goal of a fit. Raises `RecipeError` unless one of the three is given, and is possible."""
    if sum(goal is not None for goal in (max_size, max_kl, max_wer_increase)) != 1:
        raise RecipeError("give either a size, a bound on the KL, or a bound on the increase of the word error rate")
    for title, bound in (("a KL", max_kl), ("an increase of the word error rate", max_wer_increase)):
        if bound is not None and not 0 < bound < float("inf"):
            raise RecipeError(f"{title} of {bound} is not possible; give a number above 0")
    return FitGoal(max_bytes=None if max_size is None else parse_size(max_size), max_kl=max_kl, max_wer_increase=max_wer_increase)
