"""The verb `tune`: scales, norms and biases of a quantized model against the original, codes kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sottovoce.api.inputs import Sources, calibration_sets, check_counts, drawn_count, loaded_original_of
from sottovoce.checkpoint.layout import stored_name
from sottovoce.checkpoint.load import open_folder
from sottovoce.checkpoint.manifest import MANIFEST
from sottovoce.checkpoint.resume import exclusive_run
from sottovoce.checkpoint.save import History, output_folder, refuse_existing, save_quantized
from sottovoce.data.augment import Augmentation
from sottovoce.data.dataset import DataSet
from sottovoce.data.mixture import Weighting, mix
from sottovoce.errors import CheckpointError, MachineError, ModelError
from sottovoce.evaluation.context import ShortContext
from sottovoce.models.load import local_folder
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.pipeline import CalibrationRecord, QuantizedModel, Timing, brought_home, calibration_record
from sottovoce.quantization.run_state import RunState
from sottovoce.quantization.tune_record import TuneRecord, TuneSettings, default_rates
from sottovoce.system.devices import Placement
from sottovoce.system.plain_data import to_plain
from sottovoce.system.progress import Progress, silent
from sottovoce.system.torchrun import refuse_ranks
from sottovoce.system.versions import environment
from sottovoce.tuning.numbers import TunedNumbers
from sottovoce.tuning.run import Tuning
from sottovoce.tuning.schedule import MARGIN, SMALLEST
from sottovoce.tuning.speech import Folds, split
from sottovoce.tuning.teacher import make_lessons, token_count

DEFAULT_UTTERANCES, DEFAULT_HELD_OUT = 192, 48


@dataclass(frozen=True, eq=False, kw_only=True)
class TuneResult:
    """`quantized`: the tuned model in memory. `record`: what was tuned, and looks at held-out speech. `folder`: where it was written."""

    quantized: QuantizedModel
    record: TuneRecord
    folder: Path


def tune(
    checkpoint: str | Path,
    out: str | Path,
    *,
    calibration: Sources,
    against: str | Path | SpeechModel | None = None,
    settings: TuneSettings | None = None,
    weighting: Weighting = "hours",
    augmentation: Augmentation | None = None,
    utterances: int = DEFAULT_UTTERANCES,
    held_out: int = DEFAULT_HELD_OUT,
    seed: int = 0,
    language: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    placement: Placement = Placement(),  # noqa: B008 - a frozen value
    progress: Progress = silent,
) -> TuneResult:
    """Tune what is no code in the quantized folder `checkpoint` so that it follows its original, and write the folder `out`.

    Scales and minima of quantized layers, norms, biases and tables of positions move; codes stay. `calibration`: speech, without
    transcripts: `utterances` are trained on, and `held_out` others, by other speakers, are looked at; the best look is kept, and the start
    if none is better. `augmentation`: vary the speech that is trained on (see `data.augment`). `against`: the original (default: the one
    that the folder names). `settings`: steps, rates, context. `resume`: go on where the same tuning was stopped. `placement`: the device
    that computes, in float32. Same inputs and seed give the same bytes.
    Raises a `SottovoceError` and leaves `out` as it was: `CheckpointError` for what is no quantized folder or is tuned already,
    `ModelError` for an original that is missing or another model, `CalibrationError` for speech that is too little,
    `MachineError` under torchrun, and for a placement in another number type or with offloaded weights.
    """
    refuse_ranks("tuning")
    if placement != Placement(device=placement.device):
        raise MachineError(f"tuning trains float32 numbers that stay on the device, and the placement is {placement}; give a device alone")
    check_counts(utterances=utterances, held_out=held_out)
    folder, settings = output_folder(out), settings or TuneSettings()
    refuse_existing(folder, overwrite=overwrite)
    start, history = open_quantized(checkpoint)
    original = loaded_original_of(start.model, against, start.model.source, checkpoint)
    refuse_context(original, settings)
    sets = calibration_sets(calibration, utterances + held_out)
    folds = draw(sets, start.calibration, weighting=weighting, utterances=utterances, held_out=held_out, seed=seed)
    inputs = {
        "checkpoint": start.model.digest(),
        "model": original.digest(),
        "settings": to_plain(settings),
        "training": folds.training.digest(),
        "held_out": folds.held_out.digest(),
        "augmentation": to_plain(augmentation),
        "seed": seed,
        "language": language,
        "environment": environment() | {"threads": str(torch.get_num_threads())},
        "device": str(placement),
    }
    with exclusive_run(folder, resume=resume, overwrite=overwrite) as state:
        state.begin(inputs, resume=resume)
        result, record, more = tune_quantized(
            start,
            original,
            folds,
            settings,
            augmentation=augmentation,
            seed=seed,
            language=language,
            state=state,
            placement=placement,
            progress=progress,
        )
        chosen_on = tuple(dict.fromkeys((*history.chosen_on, *more.chosen_on)))
        save_quantized(result, folder, overwrite=overwrite, history=replace(more, fit=history.fit, chosen_on=chosen_on))
    return TuneResult(quantized=result, record=record, folder=folder)


def open_quantized(checkpoint: str | Path) -> tuple[QuantizedModel, History]:
    """Open a quantized folder to tune it. Raises `CheckpointError` if it is none, or tuned already."""
    folder = local_folder(checkpoint)
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{checkpoint}: is not a folder written by `sottovoce quantize`, and only such a folder is tuned; in place of an exported file "
            "give the folder that it was made from"
        )
    opened = open_folder(folder)
    manifest = opened.manifest
    if manifest.tune is not None:
        raise CheckpointError(
            f"{checkpoint}: is tuned already ({manifest.tune.chosen} steps); give the folder that it was made from, with more steps or "
            "more speech"
        )
    result = QuantizedModel(
        model=opened.model,
        weights={layer.name: opened.weights[stored_name(layer)] for layer in manifest.plan.layers},
        reports=manifest.layers,
        plan=manifest.plan,
        recipe=manifest.recipe,
        calibration=manifest.calibration,
        timing=Timing(labels_s=0.0, solving_s=0.0),
    )
    return result, History(fit=manifest.fit, chosen_on=manifest.chosen_on)


def refuse_context(model: SpeechModel, settings: TuneSettings) -> None:
    """Raise `ModelError` if short contexts are to be tuned for, and the model's encoder has no window to cut."""
    if settings.context == "short" and model.window_positions is None:
        raise ModelError(
            f"{model.source}: the encoder of {model.network.config.model_type!r} models already ends with the recording, so there is no "
            "context to shorten; leave --context out"
        )


def draw(
    sets: Sequence[DataSet],
    calibrated: CalibrationRecord | None,
    *,
    weighting: Weighting,
    utterances: int = DEFAULT_UTTERANCES,
    held_out: int = DEFAULT_HELD_OUT,
    seed: int,
) -> Folds:
    """Draw both folds from speech; `calibrated`: what the codes were calibrated on. Raises `CalibrationError` if there is too little."""
    count = drawn_count(sets, utterances + held_out)
    return split(mix(sets, count=count, seed=seed, weighting=weighting), utterances, held_out, calibrated)


def tune_quantized(
    start: QuantizedModel,
    original: SpeechModel,
    folds: Folds,
    settings: TuneSettings,
    *,
    augmentation: Augmentation | None = None,
    seed: int,
    language: str | None,
    state: RunState,
    placement: Placement,
    progress: Progress,
) -> tuple[QuantizedModel, TuneRecord, History]:
    """Tune a result in memory. Return the tuned one, on the CPU, the record, and what its manifest tells more."""
    original = original.placed(placement)
    training = prepare_speech(
        original, folds.training, language=language, augmentation=augmentation, seed=seed, state=state, progress=progress
    )
    held_out = prepare_speech(original, folds.held_out, language=language, state=state, least=1, progress=progress)
    taught = make_lessons(original, training, sampled=settings.sampled > 0, seed=seed, doing="listening to the original", progress=progress)
    looked_at = make_lessons(original, held_out, sampled=False, seed=seed, doing="listening to the original, held out", progress=progress)
    bits = sum(layer.weights * layer.format.code_bits for layer in start.plan.layers) / start.plan.weights
    rate, float_rate = default_rates(bits, settings.context)
    rates = (settings.rate or rate, settings.float_rate or float_rate)
    running = start.model.placed(placement)
    numbers = TunedNumbers(running, start.weights)
    tuned = Tuning(original, numbers, taught, looked_at, settings, rates, seed=seed).run(state, progress)
    record = TuneRecord(
        settings=replace(settings, steps=settings.n_steps),
        rate=rates[0],
        float_rate=rates[1],
        original=original.source,
        numbers=numbers.count,
        codes=numbers.codes,
        looks=tuned.looks,
        chosen=tuned.best.step,
        moved=numbers.moved_most(),
        speech=calibration_record(training, seed),
        held_out=held_out.ids,
        calibrated_on=folds.calibrated_on,
        tokens=token_count(looked_at),
    )
    short = settings.context == "short" and tuned.best.step > 0
    weights = {name: weight.cpu() for name, weight in tuned.weights.items()}
    result = brought_home(replace(start, model=running.with_network(tuned.network), weights=weights), start.model)
    history = History(
        tune=record,
        short_context=ShortContext(margin=MARGIN, smallest=SMALLEST) if short else None,
        chosen_on=held_out.hashes,
    )
    return result, record, history
