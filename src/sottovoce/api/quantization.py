"""The verbs `make_plan` and `quantize`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from sottovoce.api.inputs import Sources, calibration_sets, check_counts, loaded_original
from sottovoce.api.tuning import DEFAULT_HELD_OUT, DEFAULT_UTTERANCES, draw, refuse_context, tune_quantized
from sottovoce.backends.registry import DEFAULT_TARGET, target_named
from sottovoce.checkpoint.resume import StoredRun, exclusive_run
from sottovoce.checkpoint.save import output_folder, refuse_existing, save_quantized
from sottovoce.data.augment import Augmentation
from sottovoce.data.dataset import DataSet
from sottovoce.data.mixture import Weighting, mix
from sottovoce.errors import MachineError, RecipeError, SottovoceError
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import CalibrationSpeech, prepare_speech
from sottovoce.quantization.memory_plan import MemoryPlan, check_method, plan_memory
from sottovoce.quantization.methods import GPTQ
from sottovoce.quantization.pipeline import QuantizedModel, brought_home, quantize_model
from sottovoce.quantization.plan import Plan, check_plan
from sottovoce.quantization.plan import make_plan as plan_from_recipe
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.run_state import RunState
from sottovoce.quantization.tune_record import TuneSettings
from sottovoce.quantization.windows import make_windows
from sottovoce.system.devices import Placement
from sottovoce.system.memory import tells_memory
from sottovoce.system.notices import notice
from sottovoce.system.plain_data import from_plain, to_plain
from sottovoce.system.progress import Progress, silent
from sottovoce.system.ranks import Ranks, joined_ranks
from sottovoce.system.torchrun import is_leading, refuse_ranks
from sottovoce.system.versions import environment

MEMORY = "memory"
GIB = 1 << 30


def make_plan(model: str | Path | SpeechModel, recipe: Recipe | None = None, *, target: str = DEFAULT_TARGET) -> Plan:
    """Return which layer of `model` gets which number format by `recipe`, for the runtime `target`.

    Raises `RecipeError` for a recipe that does not fit the model, or a target that cannot hold the result.
    """
    wanted = target_named(target)
    return plan_from_recipe(loaded_original(model), recipe or Recipe(format=wanted.format()), wanted)


def checked_plan(
    model: str | Path | SpeechModel,
    recipe: Recipe,
    plan: Plan | None = None,
    *,
    target: str,
    language: str | None = None,
    tune: TuneSettings | None = None,
) -> Plan:
    """Return the plan that `quantize` would carry out: `plan`, or the one that `recipe` gives.

    Raises `RecipeError` or `ModelError` for what `quantize` refuses once it knows the model, before it reads speech.
    """
    speech_model, wanted = loaded_original(model), target_named(target)
    speech_model.choose_language(language)
    if tune is not None:
        refuse_context(speech_model, tune)
    if plan is None:
        return plan_from_recipe(speech_model, recipe, wanted)
    check_plan(plan, speech_model, wanted)
    return plan


def quantize(
    model: str | Path | SpeechModel,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    plan: Plan | None = None,
    calibration: Sources | None = None,
    weighting: Weighting = "hours",
    augmentation: Augmentation | None = None,
    utterances: int | None = 128,
    seed: int = 0,
    batch_size: int = 8,
    language: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    target: str | None = None,
    placement: Placement = Placement(),  # noqa: B008 - a frozen value
    max_memory: int | None = None,
    tune: TuneSettings | None = None,
    progress: Progress = silent,
) -> QuantizedModel:
    """Quantize `model` by `recipe` (FADE at 4 bits if omitted) and write the result to the folder `out`.

    `calibration`: speech to calibrate on, of which `utterances` are sampled by `seed`; transcripts are not needed. Of several
    data sets each gives utterances by its hours, or all as many (`weighting`). `augmentation`: vary the speech (see `data.augment`).
    `target`: the runtime ("compressed-tensors", "onnxruntime", "transcribe.cpp", "whisper.cpp", "torch") that must hold the result.
    `plan`: which layer gets which format, in place of what `recipe` and `target` say of that; the stored recipe then has the format of most
    weights. `resume`: go on where an earlier run of
    the same inputs was stopped, if there is one. `tune`: also tune what is no code, on up to 192 utterances of `calibration` and looking
    at up to 48 others by other speakers (see `tune`). `placement`: where the forward passes and the solves run (see `find_placement`);
    the result is on the CPU in any case; tuning computes on the device in float32. `max_memory`: bytes of main memory that each process may
    take; smaller batches and a file for activations keep it below (see `quantization.memory_plan`). Started by torchrun, the processes
    share the utterances, and rank 0 writes; the others return the same codes. Same inputs and seed give the same bytes.
    Raises a `SottovoceError` (see `sottovoce.errors`) and leaves `out` as it was.
    """
    check_counts(utterances=utterances)
    folder = check_request(
        out, recipe=recipe, calibration=calibration, overwrite=overwrite, placement=placement, max_memory=max_memory, tune=tune
    )
    speech_model = loaded_original(model)
    wanted = target_named(target or (plan.target if plan else DEFAULT_TARGET))
    recipe = recipe or Recipe(format=wanted.format())
    given = plan
    plan = checked_plan(speech_model, recipe, given, target=wanted.name, language=language, tune=tune)
    if given is not None and not _is_plan_of(plan, recipe, speech_model):
        recipe = replace(recipe, format=plan.main_format)
    speech_given = () if calibration is None else calibration
    sample, tuned_on = None, list[DataSet]()
    if recipe.method.n_networks:
        sets = calibration_sets(speech_given, utterances)
        sample = mix(sets, count=utterances, seed=seed, weighting=weighting)
    if tune is not None:
        tuned_on = calibration_sets(speech_given, DEFAULT_UTTERANCES + DEFAULT_HELD_OUT)
        draw(tuned_on, None, weighting=weighting, seed=seed)  # too little speech is refused before any work
    inputs = {
        "model": speech_model.digest(),
        "recipe": to_plain(recipe),
        "plan": to_plain(plan),
        "calibration": None if sample is None else sample.digest(),
        "augmentation": to_plain(augmentation),
        "seed": seed,
        "batch_size": batch_size,
        "language": language,
        "environment": environment() | {"threads": str(torch.get_num_threads())},
        "device": str(placement),
        "max_memory": max_memory,
    }
    running = speech_model.placed(placement, keep_float32=True)
    if tune is not None:
        inputs["tune"] = {"settings": to_plain(tune), "speech": [data.digest() for data in tuned_on]}
    with joined_ranks() as ranks, _run(ranks, folder, resume=resume, overwrite=overwrite) as state:
        ranks.compare(inputs)
        if isinstance(state, StoredRun):
            state.begin(inputs, resume=resume)
        progress = progress if ranks.leads else silent
        speech = None
        if sample is not None:
            speech = prepare_speech(
                running, sample, language=language, augmentation=augmentation, seed=seed, state=state, ranks=ranks, progress=progress
            )
        spill = None
        if max_memory is not None and speech is not None:
            chosen = _memory_plan(running, plan, recipe, speech, max_memory, batch_size, state, ranks)
            batch_size, spill = chosen.batch_size, folder.parent if chosen.spill else None
        result = quantize_model(
            running,
            plan,
            recipe,
            speech,
            batch_size=batch_size,
            seed=seed,
            state=state,
            ranks=ranks,
            spill=spill,
            progress=progress,
        )
        result = brought_home(result, speech_model)
        if not ranks.leads:
            return result
        history = None
        if tune is not None:
            folds = draw(tuned_on, result.calibration, weighting=weighting, seed=seed)
            result, _, history = tune_quantized(
                result,
                speech_model,
                folds,
                tune,
                augmentation=augmentation,
                seed=seed,
                language=language,
                state=state,
                placement=Placement(device=placement.device),
                progress=progress,
            )
        save_quantized(result, folder, overwrite=overwrite, history=history)
    return result


def _is_plan_of(plan: Plan, recipe: Recipe, model: SpeechModel) -> bool:
    """Tell whether `recipe` says what `plan` does, or the plan was given in place of what it says."""
    try:
        return plan_from_recipe(model, recipe, target_named(plan.target)) == plan
    except SottovoceError:
        return False


def check_settings(recipe: Recipe | None, *, placement: Placement, max_memory: int | None, tune: TuneSettings | None) -> None:
    """Raise `RecipeError` for settings of `quantize` that exclude each other, `MachineError` for tuning under torchrun, and for a
    limit of memory where the system does not tell how much a process has."""
    method = (recipe or Recipe()).method
    if max_memory is not None and not tells_memory():
        raise MachineError(
            "a limit of memory needs Linux, which tells what a process has; leave out --max-memory, and give smaller batches"
        )
    if max_memory is not None and placement.device.type != "cpu":
        raise RecipeError("a limit is for main memory, and here the activations are on another device; leave out --max-memory or --device")
    if max_memory is not None:
        check_method(method)
    if max_memory is not None and isinstance(method, GPTQ) and method.curvature:
        raise RecipeError("a limit of memory does not foresee the backward pass of the curvature; leave out --max-memory or --curvature")
    if tune is not None:
        refuse_ranks("tuning")


def check_request(
    out: str | Path,
    *,
    recipe: Recipe | None,
    calibration: Sources | None,
    overwrite: bool,
    placement: Placement,
    max_memory: int | None,
    tune: TuneSettings | None,
) -> Path:
    """Return the whole path of `out`, if what `quantize` is asked for can be, as far as can be told without the model.

    Raises `RecipeError` for settings that exclude each other or lack speech, `OutputError` for a folder that must not be replaced.
    """
    check_settings(recipe, placement=placement, max_memory=max_memory, tune=tune)
    method = (recipe or Recipe()).method
    none_given = calibration is None or (isinstance(calibration, Sequence) and not calibration)
    if method.n_networks and none_given:
        name = method.title.partition(",")[0]
        raise RecipeError(
            f"{name} calibrates on speech, and none was given: give a folder or manifest (--calibration), or choose plain rounding "
            "(--method rtn)"
        )
    if tune is not None and none_given:
        raise RecipeError("tuning listens to speech: give calibration data (a folder or manifest), or do not tune")
    folder = output_folder(out)
    if is_leading():
        refuse_existing(folder, overwrite=overwrite)
    return folder


def _memory_plan(
    model: SpeechModel,
    plan: Plan,
    recipe: Recipe,
    speech: CalibrationSpeech,
    limit: int,
    batch_size: int,
    state: RunState,
    ranks: Ranks,
) -> MemoryPlan:
    """Return the plan that a stopped run had, or make one; rank 0 decides for all. Say what it is."""
    known = [from_plain(MemoryPlan, value) for value in state.values(MEMORY)] if isinstance(state, StoredRun) else []
    made = known[0] if known else None
    if ranks.leads and made is None:
        windows = make_windows(model, speech, joined=recipe.joined)
        made = plan_memory(model, plan, recipe.method, windows, limit, batch_size=batch_size, processes=ranks.size)
        if isinstance(state, StoredRun):
            state.add_value(MEMORY, to_plain(made))
    found = from_plain(MemoryPlan, ranks.exchange(to_plain(made))[0])
    if ranks.leads:
        where = f", activations in a file of {found.file_bytes / GIB:.2f} GiB" if found.spill else ""
        notice(f"memory: batches of {found.batch_size}{where}; {found.peak_bytes / GIB:.2f} GiB foreseen of {limit / GIB:.2f} GiB")
    return found


def _run(ranks: Ranks, folder: Path, *, resume: bool, overwrite: bool) -> AbstractContextManager[RunState]:
    """Rank 0 keeps what is finished on disk; the others hear of it."""
    return exclusive_run(folder, resume=resume, overwrite=overwrite) if ranks.leads else nullcontext(RunState())
