"""The verbs of the package: `load`, `quantize`, `export`, `evaluate`, `transcribe`, `push` and their like."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from sottovoce import __version__
from sottovoce.backends.export import export
from sottovoce.backends.registry import DEFAULT_RUNTIME, DEFAULT_TARGET, backend_named, open_runtime, runtime_of, target_named
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.checkpoint.load import load
from sottovoce.checkpoint.manifest import Manifest, read_manifest
from sottovoce.checkpoint.resume import exclusive_run
from sottovoce.checkpoint.save import refuse_existing, save_quantized
from sottovoce.checkpoint.verify import verify
from sottovoce.data.augment import Augmentation
from sottovoce.data.dataset import DataSet
from sottovoce.data.folds import assign_folds
from sottovoce.data.load import load_data, load_each, load_sources
from sottovoce.data.mixture import Weighting, mix
from sottovoce.errors import DataError, OutputError, RecipeError
from sottovoce.evaluation.confidence import FittedConfidence, fit_to_transcripts
from sottovoce.evaluation.error_statistics import ErrorStatistics, error_statistics
from sottovoce.evaluation.fallback import Fallback
from sottovoce.evaluation.recognizer import Recognizer, TorchRecognizer
from sottovoce.evaluation.transcribe import Transcription, transcribe_data
from sottovoce.evaluation.transcript_cache import TranscriptCache
from sottovoce.evaluation.transcripts import read_transcripts
from sottovoce.evaluation.wer import Score, score_transcripts
from sottovoce.fitting.attempt import Quantizer
from sottovoce.fitting.run import Fit, FitSettings
from sottovoce.fitting.size import parse_size
from sottovoce.fitting.speech import held_out_speech, prepare, split
from sottovoce.hub.push import push
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.fit_record import FitGoal, FitRecord
from sottovoce.quantization.methods import GPTQ
from sottovoce.quantization.pipeline import QuantizedModel, quantize_model
from sottovoce.quantization.plan import Plan, check_plan
from sottovoce.quantization.plan import make_plan as plan_from_recipe
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.memory import peak_memory_bytes
from sottovoce.system.plain_data import to_plain
from sottovoce.system.progress import Progress, silent
from sottovoce.system.versions import environment

__all__ = [
    "Evaluation",
    "Fallback",
    "evaluate",
    "export",
    "fit",
    "fit_confidence",
    "inspect",
    "inspect_errors",
    "load",
    "make_plan",
    "open_recognizer",
    "push",
    "quantize",
    "score",
    "transcribe",
    "verify",
]

DEFAULT_HELD_OUT = 16  # utterances of each fold on which a fit measures
HUB_SURPLUS = 10  # utterances fetched from the Hub for each one that is drawn


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Score and timing of a model on a data set; `reference`: the same of the model it was compared with.

    `model_bytes`: the weights on disk, or as float16 would be where they lie elsewhere; `peak_memory_bytes`: of the whole process.
    """

    score: Score
    transcription: Transcription
    model_bytes: int
    peak_memory_bytes: int
    reference: Evaluation | None = None

    @property
    def rtfx(self) -> float:
        """Seconds of audio transcribed per second of work."""
        seconds = self.transcription.encoder_s + self.transcription.decoder_s
        return self.transcription.audio_s / seconds if seconds else 0.0


def make_plan(model: str | Path | SpeechModel, recipe: Recipe | None = None, *, target: str = DEFAULT_TARGET) -> Plan:
    """Return which layer of `model` gets which number format by `recipe`, for the runtime `target`.

    Raises `RecipeError` for a recipe that does not fit the model, or a target that cannot hold the result.
    """
    wanted = target_named(target)
    return plan_from_recipe(_loaded(model), recipe or Recipe(format=wanted.format()), wanted)


def quantize(
    model: str | Path | SpeechModel,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    plan: Plan | None = None,
    calibration: str | Path | DataSet | Sequence[str | Path | DataSet] | None = None,
    weighting: Weighting = "hours",
    augmentation: Augmentation | None = None,
    utterances: int | None = 128,
    seed: int = 0,
    batch_size: int = 8,
    language: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    target: str | None = None,
    progress: Progress = silent,
) -> QuantizedModel:
    """Quantize `model` by `recipe` (FADE at 4 bits if omitted) and write the result to the folder `out`.

    `calibration`: speech to calibrate on, of which `utterances` are sampled by `seed`; transcripts are not needed. Of several
    data sets each gives utterances by its hours, or all as many (`weighting`). `augmentation`: vary the speech (see `data.augment`).
    `target`: the runtime ("compressed-tensors", "onnxruntime", "transcribe.cpp", "whisper.cpp", "torch") that must hold the result.
    `plan`: which
    layer gets which format, in place of what `recipe` and `target` say of that. Same inputs and seed give the same bytes.
    `resume`: go on where an earlier run of the same inputs was stopped, if there is one.
    Raises a `SottovoceError` (see `sottovoce.errors`) and leaves `out` as it was.
    """
    folder = Path(out).expanduser().absolute()
    refuse_existing(folder, overwrite=overwrite)
    speech_model = _loaded(model)
    wanted = target_named(target or (plan.target if plan else DEFAULT_TARGET))
    recipe = recipe or Recipe(format=wanted.format())
    if plan is None:
        plan = plan_from_recipe(speech_model, recipe, wanted)  # what does not fit is refused before any work
    else:
        check_plan(plan, speech_model, wanted)
    sample = None
    if recipe.method.n_networks:
        if calibration is None or (isinstance(calibration, Sequence) and not calibration):
            raise RecipeError(
                f"{recipe.method.title} calibrates on speech: give calibration data (a folder or manifest), or choose method 'rtn'"
            )
        sources = [calibration] if isinstance(calibration, str | Path | DataSet) else calibration
        sets = load_each(sources, lambda source: _calibration_data(source, utterances))
        sample = mix(sets, count=utterances, seed=seed, weighting=weighting)
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
    }
    with exclusive_run(folder, resume=resume, overwrite=overwrite) as state:
        state.begin(inputs, resume=resume)
        speech = None
        if sample is not None:
            speech = prepare_speech(
                speech_model, sample, language=language, augmentation=augmentation, seed=seed, state=state, progress=progress
            )
        result = quantize_model(speech_model, plan, recipe, speech, batch_size=batch_size, seed=seed, state=state, progress=progress)
        save_quantized(result, folder, overwrite=overwrite)
    return result


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
    target: str = DEFAULT_TARGET,
    calibration: str | Path | DataSet | Sequence[str | Path | DataSet],
    recipe: Recipe | None = None,
    weighting: Weighting = "hours",
    utterances: int = 128,
    held_out: int = DEFAULT_HELD_OUT,
    swaps: int = 20,
    baselines: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    language: str | None = None,
    verify: bool = True,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> FitResult:
    """Choose a format for every layer so that the file of `target` fits into `max_size` and loses least, and write it.

    Either `max_size` (bytes, or text such as "30MB") or `max_kl` (nats per token: then the smallest file that keeps it) is given. Writes
    the quantized folder `out` and, for a runtime with files of its own, that file beside it. Of `calibration`, `utterances` are
    calibrated on and three times `held_out` others, of other speakers, are measured on; no transcripts are needed. `recipe`: its
    method must go layer by layer (gptq, qep, fade); its formats are not used. `swaps`: tried at most after the solution. `baselines`:
    also measure 20 random schedules. `verify`: try the file in its runtime. `resume`: go on where the same fit was stopped.
    Raises a `SottovoceError` and leaves `out` as it was; `RecipeError` names the smallest size if `max_size` is too small.
    """
    folder = Path(out).expanduser().absolute()
    refuse_existing(folder, overwrite=overwrite)
    if (max_size is None) == (max_kl is None):
        raise RecipeError("give either a size or a bound on the KL")
    if max_kl is not None and not max_kl > 0:
        raise RecipeError(f"a KL of {max_kl} is not possible; give a number above 0")
    backend = backend_named(target)
    file = folder if backend.write is None else folder.parent / backend.file_name.format(folder.name)
    if file != folder and file.exists() and not overwrite:
        raise OutputError(f"{file} exists already; give another name, or --overwrite to replace it")
    recipe = recipe or Recipe()
    if not isinstance(recipe.method, GPTQ):
        raise RecipeError(f"a fit goes layer by layer, and {recipe.method.title} does not; choose gptq, qep or fade")
    speech_model = _loaded(model)
    goal = FitGoal(max_bytes=None if max_size is None else parse_size(max_size), max_kl=max_kl)
    settings = FitSettings(swaps=swaps, baselines=baselines)
    fitting = Fit(speech_model, backend, goal, settings)
    sources = [calibration] if isinstance(calibration, str | Path | DataSet) else calibration
    sets = load_each(sources, lambda source: _calibration_data(source, utterances + 3 * held_out))
    # Of a single set all may be drawn, since those by speakers who are held out are left out; of several the weights decide.
    count = None if len(sets) == 1 else utterances + 3 * held_out
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
    }
    with exclusive_run(folder, resume=resume, overwrite=overwrite) as state:
        state.begin(inputs, resume=resume)
        speech = prepare(speech_model, sample, folds, language=language, state=state, progress=progress)
        quantizer = Quantizer(
            speech_model,
            recipe,
            speech.calibration,
            fitting.units,
            batch_size=batch_size,
            seed=seed,
            run=state,
            progress=progress,
        )
        result, record = fitting.run(quantizer, speech, state, progress)
        if file != folder:
            written = export(result, backend.name, file, verify=verify, overwrite=overwrite, language=language, progress=progress)
            record = replace(record, bytes=written.bytes)
        save_quantized(result, folder, overwrite=overwrite, fit=record)
        if file == folder:
            record = replace(record, bytes=(folder / WEIGHTS).stat().st_size)
    return FitResult(quantized=result, record=record, file=file)


def inspect(folder: str | Path) -> Manifest:
    """Return what a quantized folder is: plan, recipe, calibration, diagnostics, files. Raises `CheckpointError`."""
    return read_manifest(folder)


def inspect_errors(
    folder: str | Path,
    audio: str | Path | DataSet,
    *,
    against: str | Path | SpeechModel | None = None,
    limit: int | None = DEFAULT_HELD_OUT,
    alone: bool = False,
    language: str | None = None,
    progress: Progress = silent,
) -> ErrorStatistics:
    """Return how the errors of a quantized folder's layers add up on `audio` (its first `limit` utterances; no transcripts needed).

    `against`: the original, if it no longer is where the folder says it came from. `alone`: each layer on its own in the original, in place
    of one after the other. Use speech that calibration has not seen. Raises `CheckpointError`, `DataError`.
    """
    manifest = read_manifest(folder)
    original, quantized = _loaded(against or manifest.source), load(folder)
    data = audio.take(limit) if isinstance(audio, DataSet) else load_data(audio, at_most=limit)
    speech = held_out_speech(original, data, language=language, progress=progress)
    planned = {layer.name for layer in manifest.plan.layers}
    units = {layer.name: [layer.name] for layer in original.layers() if layer.name in planned}
    return error_statistics(original, quantized, units, speech, mode="alone" if alone else "telescoped", progress=progress)


def open_recognizer(model: str | Path | SpeechModel, runtime: str | None = None, *, fallback: Fallback | None = None) -> Recognizer:
    """Return what transcribes: `model` in PyTorch, or in the backend `runtime`, with as many threads as torch is set to.

    An exported file or ONNX folder runs in the runtime it is made for; another model is exported to a temporary file first. `fallback`:
    decode again what does not pass its thresholds, in PyTorch only (else `RecipeError`).
    """
    made_for = None if isinstance(model, SpeechModel) else runtime_of(model)
    asked = None if runtime is None else backend_named(runtime)
    chosen = made_for or (asked.name if asked is not None else DEFAULT_RUNTIME)
    if fallback is not None and chosen != DEFAULT_RUNTIME:
        raise RecipeError(f"decoding with fallback runs in {DEFAULT_RUNTIME} only, and this is {chosen}; leave out --fallback or --runtime")
    if made_for is not None:
        if asked is not None and asked.name != made_for:
            raise RecipeError(f"{model} is made for the runtime {made_for}, and {asked.name} was asked for; leave --runtime out")
        return open_runtime(made_for, str(model), torch.get_num_threads())
    if asked is None or asked.name == DEFAULT_RUNTIME:
        return TorchRecognizer(_loaded(model), fallback=fallback)
    if isinstance(model, SpeechModel):
        raise RecipeError(f"a loaded model does not run in {asked.name}; export it, and name the file")
    if asked.write is None:
        return asked.open(str(model), torch.get_num_threads())
    folder = Path(tempfile.mkdtemp(prefix="sottovoce."))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    exported = export(model, asked.name, folder / asked.file_name.format("model"), verify=False)
    return asked.open(str(exported.file), torch.get_num_threads())


def evaluate(
    model: str | Path | SpeechModel | Recognizer,
    data: str | Path | DataSet,
    *,
    against: str | Path | SpeechModel | Recognizer | None = None,
    limit: int | None = None,
    runtime: str | None = None,
    language: str | None = None,
    fallback: Fallback | None = None,
    save: str | Path | None = None,
    save_reference: str | Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measure the error rate of `model` on `data` (its first `limit` utterances), and compare it with `against` by utterance.

    `runtime`: what runs `model` (see `open_recognizer`); `against` runs in PyTorch unless it is an exported file. `language`: of utterances
    that have none of their own; scoring follows it (see `evaluation.normalize`). `fallback`: of both models; greedy if omitted. `save`,
    `save_reference`: write the transcripts of the two there; a stopped run goes on with those it had made. Recordings that cannot be
    used are left out and named in the result. Raises `DataError` if none can be scored, or if `against` recognizes no word.
    """
    data = data.take(limit) if isinstance(data, DataSet) else load_data(data, at_most=limit)
    reference = None
    if against is not None:
        reference = evaluate(against, data, language=language, fallback=fallback, save=save_reference, progress=progress)
    recognizer = _recognizer(model, runtime, fallback)
    transcription = transcribe_resumably(recognizer, data, save, language=language, progress=progress)
    if transcription.unusable and not transcription.transcripts:
        raise DataError(f"{data.name}: none of its recordings can be used; the first: {next(iter(transcription.unusable.values()))}")
    return Evaluation(
        score=score_transcripts(transcription.transcripts, reference.transcription.transcripts if reference else None, language=language),
        transcription=transcription,
        model_bytes=recognizer.stored_bytes,
        peak_memory_bytes=peak_memory_bytes(),
        reference=reference,
    )


def score(transcripts: str | Path, *, against: str | Path | None = None, language: str | None = None) -> tuple[Score, Score | None]:
    """Score a transcript file, and that of the reference system it is compared with. No model is needed.

    `language`: of transcripts that name none. Raises `DataError` as `score_transcripts` does.
    """
    reference = None if against is None else read_transcripts(against)
    return (
        score_transcripts(read_transcripts(transcripts), reference, language=language),
        None if reference is None else score_transcripts(reference, language=language),
    )


def fit_confidence(
    model: str | Path | SpeechModel,
    data: str | Path | DataSet,
    *,
    limit: int | None = None,
    seed: int = 0,
    language: str | None = None,
    progress: Progress = silent,
) -> FittedConfidence:
    """Fit temperature and Platt scaling of word confidences on one half of `data` (with texts) and measure them on the other.

    The halves share no speaker where speakers are known. Use speech the model was not calibrated on. Raises `DataError` if
    there are too few words to fit or to judge.
    """
    model = _loaded(model)
    data = data.take(limit) if isinstance(data, DataSet) else load_data(data, at_most=limit)
    known = data.sample(None, seed).utterances
    known = tuple(utterance for utterance in known if utterance.text)
    recognizer = TorchRecognizer(model)
    transcription = transcribe_data(recognizer, DataSet(data.name, known), language=language, confidence=True, progress=progress)
    halves = assign_folds([utterance.speaker for utterance in known])
    return fit_to_transcripts(recognizer, transcription.transcripts, halves)


def transcribe(
    model: str | Path | SpeechModel | Recognizer,
    audio: Sequence[str | Path],
    *,
    confidence: bool = False,
    runtime: str | None = None,
    language: str | None = None,
    fallback: Fallback | None = None,
    save: str | Path | None = None,
    progress: Progress = silent,
) -> Transcription:
    """Transcribe sound files, folders of them and data sets, in their order.

    `confidence`: with the log-probability of each token (see `word_confidences`). `fallback`: as for `open_recognizer`.
    `save`: write the transcripts there; a stopped run goes on with those it had made. Recordings that cannot be used are left out and
    named in the result.
    """
    data = load_sources(audio)
    recognizer = _recognizer(model, runtime, fallback)
    return transcribe_resumably(recognizer, data, save, language=language, confidence=confidence, progress=progress)


def transcribe_resumably(
    recognizer: Recognizer,
    data: DataSet,
    save: str | Path | None,
    *,
    language: str | None,
    confidence: bool = False,
    progress: Progress,
) -> Transcription:
    """Transcribe what can be transcribed of `data`; keep it in the file `save` as it is made, so that a stopped run goes on."""
    cache = None
    if save is not None:
        source = Path(recognizer.source)
        inputs = {
            "model": str(source.absolute()) if source.exists() else recognizer.source,
            "changed": source.stat().st_mtime_ns if source.exists() else None,
            "bytes": recognizer.stored_bytes,
            "runtime": type(recognizer).__name__,
            "language": language,
            "confidence": confidence,
            "fallback": asdict(recognizer.fallback) if isinstance(recognizer, TorchRecognizer) and recognizer.fallback else None,
            "version": __version__,
        }
        cache = TranscriptCache(save, inputs)
    transcription = transcribe_data(
        recognizer,
        data,
        language=language,
        confidence=confidence,
        lenient=True,
        cache=cache,
        progress=progress,
    )
    if cache is not None:
        cache.finish(transcription.transcripts, whole=not transcription.unusable)
    return transcription


def _recognizer(model: str | Path | SpeechModel | Recognizer, runtime: str | None, fallback: Fallback | None) -> Recognizer:
    if isinstance(model, str | Path | SpeechModel):
        return open_recognizer(model, runtime, fallback=fallback)
    if fallback is not None:
        raise RecipeError("a recognizer decodes as it was opened; give the fallback to open_recognizer, or give the model here")
    return model


def _loaded(model: str | Path | SpeechModel) -> SpeechModel:
    return model if isinstance(model, SpeechModel) else load(model)


def _calibration_data(source: str | Path, utterances: int | None) -> DataSet:
    """All there is in a folder; of a data set on the Hub, some times as many as are drawn, not the whole corpus."""
    if str(source).startswith("hf:") and utterances is not None:
        return load_data(source, at_most=HUB_SURPLUS * utterances)
    return load_data(source)
