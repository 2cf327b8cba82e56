"""Do the work of one process of a bench: compute the cells of the jobs it is given."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from sottovoce.backends.export import export
from sottovoce.backends.registry import backend_named, open_runtime, target_named
from sottovoce.bench.cells import (
    TORCH,
    CalibrationKey,
    CellStore,
    Divergence,
    EvaluationCell,
    EvaluationKey,
    EvaluationResult,
    Made,
    QuantizationCell,
    QuantizationKey,
    QuantizationResult,
    cell_name,
)
from sottovoce.bench.originals import Originals
from sottovoce.bench.plan import BenchPlan, Quantization
from sottovoce.checkpoint.load import load_quantized
from sottovoce.checkpoint.save import save_quantized
from sottovoce.errors import SottovoceError
from sottovoce.evaluation.teacher_forced import divergence_of_outputs
from sottovoce.evaluation.transcribe import transcribe_data
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.pipeline import QuantizedModel, quantize_model
from sottovoce.quantization.plan import make_plan
from sottovoce.quantization.run_state import RunState


@dataclass(frozen=True, kw_only=True)
class ReferenceJob:
    """Transcribe a data set by the original."""

    model: str
    data: str


@dataclass(frozen=True, kw_only=True)
class LabelsJob:
    """Transcribe the calibration sample of a seed by the original."""

    model: str
    seed: int


Job: TypeAlias = ReferenceJob | LabelsJob | Quantization


@dataclass(frozen=True, kw_only=True)
class CellOutcome:
    """What became of a cell. `name`: of its file, or what it was about if it failed."""

    name: str
    state: Literal["computed", "found", "failed"]
    error: str = ""


def describe_job(job: Job) -> str:
    """Say what a job is about."""
    if isinstance(job, ReferenceJob):
        return f"{job.model} on {job.data}"
    if isinstance(job, LabelsJob):
        return f"calibration transcripts of {job.model}, seed {job.seed}"
    return f"{job.model}, {job.method}, {job.format or f'{job.bits} bits'}" + ("" if job.seed is None else f", seed {job.seed}")


class BenchWorker:
    """One process's share of a bench in the folder `out`; `data_root`: where its data sets lie."""

    def __init__(self, plan: BenchPlan, out: Path, data_root: Path) -> None:
        self.plan, self.store, self.cache = plan, CellStore(out), out / "cache"
        self.originals = Originals(plan, self.store, self.cache, data_root)

    @torch.no_grad()
    def run(self, job: Job) -> list[CellOutcome]:
        """Compute the cells of a job that are not finished. An error ends the job, is among the outcomes, and is not raised."""
        outcomes = list[CellOutcome]()
        try:
            if isinstance(job, ReferenceJob):
                outcomes.append(self._run_reference(job))
            elif isinstance(job, LabelsJob):
                self.originals.labels(job.model, job.seed)
            else:
                for outcome in self._run_quantization(job):
                    outcomes.append(outcome)  # one by one: an error must not lose those before it
        except Exception as exc:  # noqa: BLE001 - a failed cell must not stop the rest, whatever the reason
            outcomes.append(CellOutcome(name=describe_job(job), state="failed", error=_error_text(exc)))
        return outcomes

    def _run_reference(self, job: ReferenceJob) -> CellOutcome:
        known = self.originals.has_reference(job.model, job.data)
        self.originals.reference(job.model, job.data)
        name = cell_name(self.originals.reference_key(job.model, job.data))
        return CellOutcome(name=name, state="found" if known else "computed")

    # A quantized model: it stays in the cache until it is evaluated on every data set in every runtime.

    def _quantization_key(self, job: Quantization) -> QuantizationKey:
        calibration = None
        if job.seed is not None:
            sample = self.originals.calibration_sample(job.seed)
            calibration = CalibrationKey(
                data=str(self.plan.calibration),
                seed=job.seed,
                utterances=len(sample),
                recordings=sample.digest(),
                language=self.plan.language,
                batch_size=self.plan.batch_size,
            )
        return QuantizationKey(
            model=job.model,
            weights=self.originals.model(job.model)[1],
            method=job.method,
            bits=job.bits,
            format=job.format,
            recipe=job.recipe,
            target=self.plan.target,
            calibration=calibration,
            environment=self.originals.environment,
        )

    def _evaluation_key(self, quantization: str, data: str, runtime: str) -> EvaluationKey:
        return EvaluationKey(
            quantization=quantization,
            data=data,
            recordings=self.originals.data(data)[1],
            language=self.plan.language,
            environment=self.originals.environment,
            runtime=runtime,
            runtime_versions={} if runtime == TORCH else {name: version(name) for name in backend_named(runtime).packages},
        )

    def _run_quantization(self, job: Quantization) -> Iterator[CellOutcome]:
        key = self._quantization_key(job)
        keys = list[EvaluationKey]()
        for runtime in self.plan.runtimes:
            for data in self.plan.data:
                try:
                    keys.append(self._evaluation_key(cell_name(key), data, runtime))
                except SottovoceError as exc:
                    yield CellOutcome(name=f"{describe_job(job)} on {data}", state="failed", error=str(exc))
        missing = [own for own in keys if self.store.finished(own, EvaluationCell) is None]
        for own in keys:
            if own not in missing:
                yield CellOutcome(name=cell_name(own), state="found")
        known = self.store.finished(key, QuantizationCell) is not None
        if known and not missing:
            yield CellOutcome(name=cell_name(key), state="found")
            return
        try:
            model = self._find_quantized(job, key)
        except Exception as exc:
            self.store.write_error(QuantizationCell(key=key, error=_error_text(exc)))
            raise
        yield CellOutcome(name=cell_name(key), state="found" if known else "computed")
        outcomes = [self._run_evaluation(job, model, own) for own in missing]
        yield from outcomes
        if len(keys) == len(self.plan.runtimes) * len(self.plan.data) and not any(outcome.state == "failed" for outcome in outcomes):
            self._drop_from_cache(cell_name(key))

    def _find_quantized(self, job: Quantization, key: QuantizationKey) -> SpeechModel:
        """Return the quantized model: from the folder of an interrupted run, or quantized now."""
        original, folder = self.originals.model(job.model)[0], self.cache / cell_name(key)
        if self.store.finished(key, QuantizationCell) is not None and folder.is_dir():
            return original.with_network(load_quantized(folder)[0])
        speech, state = None, RunState()
        if job.seed is not None:
            state.add_transcripts(self.originals.labels(job.model, job.seed))
            speech = prepare_speech(original, self.originals.calibration_sample(job.seed), language=self.plan.language, state=state)
        plan = make_plan(original, job.recipe, target_named(self.plan.target))
        quantized: QuantizedModel = quantize_model(original, plan, job.recipe, speech, batch_size=self.plan.batch_size, seed=job.seed or 0)
        save_quantized(quantized, folder, overwrite=True)
        made = Made(seconds={"solving": quantized.timing.solving_s})
        self.store.write(QuantizationCell(key=key, result=QuantizationResult(layers=quantized.reports), made=made))
        return quantized.model

    def _run_evaluation(self, job: Quantization, model: SpeechModel, key: EvaluationKey) -> CellOutcome:
        try:
            cell = self._evaluate(job, model, key) if key.runtime == TORCH else self._evaluate_in_runtime(key)
        except Exception as exc:  # noqa: BLE001 - one bad data set must not keep the others from being measured
            self.store.write_error(EvaluationCell(key=key, error=_error_text(exc)))
            name = f"{describe_job(job)} on {key.data} in {key.runtime}"
            return CellOutcome(name=name, state="failed", error=_error_text(exc))
        self.store.write(cell)
        return CellOutcome(name=cell_name(key), state="computed")

    def _evaluate(self, job: Quantization, model: SpeechModel, key: EvaluationKey) -> EvaluationCell:
        started = time.perf_counter()
        reference = self.originals.reference(job.model, key.data)
        output = self.originals.evaluator(job.model, key.data).evaluate(model, self.plan.language, reference.tokens)
        distances = divergence_of_outputs(self.originals.model(job.model)[0], reference, model, output)
        result = EvaluationResult(
            transcripts=output.transcripts,
            divergence=Divergence(mean=float(distances.mean()), median=float(distances.median()), tokens=len(distances)),
        )
        return EvaluationCell(key=key, result=result, made=Made(seconds={"total": time.perf_counter() - started}))

    def _evaluate_in_runtime(self, key: EvaluationKey) -> EvaluationCell:
        """Evaluate the words alone: a runtime does not show its distributions."""
        started = time.perf_counter()
        folder = self.cache / key.quantization
        file = folder if backend_named(key.runtime).write is None else folder.with_name(f"{folder.name}.{key.runtime}")
        if not file.exists():
            export(folder, key.runtime, file, verify=False)
        recognizer = open_runtime(key.runtime, file, torch.get_num_threads())
        transcription = transcribe_data(recognizer, self.originals.data(key.data)[0], language=self.plan.language)
        seconds = {
            "total": time.perf_counter() - started,
            "encoder": transcription.encoder_s,
            "decoder": transcription.decoder_s,
        }
        result = EvaluationResult(transcripts=transcription.transcripts, divergence=None)
        return EvaluationCell(key=key, result=result, made=Made(seconds=seconds))

    def _drop_from_cache(self, quantization: str) -> None:
        for path in (self.cache / quantization, *(self.cache / f"{quantization}.{runtime}" for runtime in self.plan.runtimes)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _error_text(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"
