"""Compute every cell of a bench that is not there yet, in one process or several.

First what all cells of a model share (the original's transcripts and decoder states, the calibration transcripts), then one
quantized model after the other, each on all data sets. Whatever is finished is on disk and is not computed again.
"""

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sottovoce.backends.export import export
from sottovoce.backends.registry import backend_named, open_runtime, target_named
from sottovoce.bench.cells import Cell, Results, as_transcript, once
from sottovoce.bench.plan import BenchPlan, Quantization
from sottovoce.checkpoint.load import load_quantized
from sottovoce.checkpoint.save import save_quantized
from sottovoce.data.dataset import DataSet
from sottovoce.data.load import load_data
from sottovoce.errors import SottovoceError
from sottovoce.evaluation.teacher_forced import TeacherForcedEvaluator, TeacherForcedOutput, divergence
from sottovoce.evaluation.transcribe import transcribe_data
from sottovoce.models.load import load_model
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.pipeline import QuantizedModel, quantize_model
from sottovoce.quantization.plan import make_plan
from sottovoce.quantization.run_state import RunState
from sottovoce.system.plain_data import to_plain
from sottovoce.system.progress import Progress, silent
from sottovoce.system.versions import environment


@dataclass(frozen=True)
class BenchOutcome:
    """Names of the cells that were computed now, found finished, and failed (with why)."""

    computed: tuple[str, ...]
    found: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Job:
    """One piece of work of a process: a reference ("reference", model, data), labels ("labels", model, seed) or a quantization."""

    kind: str
    what: Any


def run_bench(
    plan: BenchPlan,
    out: str | Path,
    *,
    data_root: str | Path = ".",
    jobs: int = 1,
    threads: int | None = None,
    progress: Progress = silent,
) -> BenchOutcome:
    """Finish all cells of `plan` in the folder `out`.

    `data_root`: where the plan's data sets lie. `jobs`: processes; `threads`: of each (all cores shared evenly if omitted).
    A cell that fails is recorded with its error, does not stop the others, and is tried again the next time.
    """
    out = Path(out).expanduser().absolute()
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    first = [_Job("reference", (model, data)) for model in plan.models for data in plan.data]
    if plan.calibration is not None and any(method.n_networks for method in plan.methods.values()):
        first += [_Job("labels", (model, seed)) for model in plan.models for seed in plan.seeds]
    second = [_Job("quantization", quantization) for quantization in plan.quantizations()]
    computed, found, failed, done = list[str](), list[str](), list[tuple[str, str]](), 0
    arguments = (plan, out, Path(data_root).expanduser().absolute(), threads)
    with _worker(arguments, jobs) as submit:
        for stage in (first, second):
            futures = [submit(job) for job in stage]
            for future in as_completed(futures):
                running = min(jobs, len(futures) - sum(f.done() for f in futures))
                for name, state, error in future.result():
                    if state == "failed":
                        failed.append((name, error))
                    else:
                        (computed if state == "computed" else found).append(name)
                done += 1
                progress(f"bench, {running} running", done, len(first) + len(second))
    return BenchOutcome(tuple(computed), tuple(found), tuple(failed))


@contextmanager
def _worker(arguments: tuple[Any, ...], jobs: int) -> Iterator[Any]:
    """A function that takes a job and gives a future; several processes only if asked for."""
    if jobs == 1:
        threads_before = torch.get_num_threads()
        _start(*arguments)

        def at_once(job: _Job) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(_do(job))
            return future

        try:
            yield at_once
        finally:
            torch.set_num_threads(threads_before)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_process, arguments) as pool:
        yield lambda job: pool.submit(_do, job)


_state: dict[str, "_Bench"] = {}


def _start_process(*arguments: Any) -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _start(*arguments)


def _leave_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start(plan: BenchPlan, out: Path, data_root: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    _state["bench"] = _Bench(plan, out, data_root)


def _do(job: _Job) -> list[tuple[str, str, str]]:
    with torch.no_grad():
        return list(_state["bench"].do(job))


class _Bench:
    """One process's share: the models, features and references it has loaded so far."""

    def __init__(self, plan: BenchPlan, out: Path, data_root: Path) -> None:
        self.plan, self.data_root = plan, data_root
        self.results, self.cache = Results(out), out / "cache"
        # Loaded once per process.
        self.model: Callable[[str], tuple[SpeechModel, str]] = cache(self._model)
        self.data: Callable[[str], tuple[DataSet, str]] = cache(self._data)
        self.reference: Callable[[str, str], TeacherForcedOutput] = cache(self._reference)
        self.listener: Callable[[str, str], TeacherForcedEvaluator] = cache(self._listener)

    def do(self, job: _Job) -> Iterator[tuple[str, str, str]]:
        """The cells of a job: name, "computed", "found" or "failed", and the error."""
        if job.kind == "reference":
            model, data = job.what
            yield from self._guarded(lambda: self._reference_cell(model, data), f"{model} on {data}")
        elif job.kind == "labels":
            model, seed = job.what
            try:
                self._labels(model, seed)
            except SottovoceError as exc:
                yield f"calibration transcripts of {model}, seed {seed}", "failed", str(exc)
        else:
            yield from self._guarded(lambda: self._quantization_cells(job.what), _called(job.what))

    def _guarded(self, compute: Any, called: str) -> Iterator[tuple[str, str, str]]:
        try:
            yield from compute()
        except Exception as exc:  # noqa: BLE001 - a failed cell must not stop the rest, whatever the reason
            yield called, "failed", f"{type(exc).__name__}: {exc}"

    @cached_property
    def _environment(self) -> dict[str, Any]:
        return {**environment(), "threads": torch.get_num_threads()}

    def _model(self, name: str) -> tuple[SpeechModel, str]:
        model = load_model(name, quantized_loader=load_quantized)
        return model, model.digest()

    def _data(self, name: str) -> tuple[DataSet, str]:
        data = load_data(name if name.startswith("hf:") else self.data_root / name)
        return data, data.digest()

    def _listener(self, model: str, data: str) -> TeacherForcedEvaluator:
        return TeacherForcedEvaluator(self.model(model)[0], self.data(data)[0])

    def _cell_of_reference(self, model: str, data: str) -> Cell:
        return Cell(
            "reference",
            {
                "model": model,
                "weights": self.model(model)[1],
                "data": data,
                "recordings": self.data(data)[1],
                "language": self.plan.language,
                "environment": self._environment,
            },
        )

    def _reference_cell(self, model: str, data: str) -> Iterator[tuple[str, str, str]]:
        cell = self._cell_of_reference(model, data)
        known = self.results.finished(cell) and (self.cache / f"{cell.name}.safetensors").is_file()
        self.reference(model, data)
        yield cell.name, "found" if known else "computed", ""

    def _reference(self, model: str, data: str) -> TeacherForcedOutput:
        cell = self._cell_of_reference(model, data)
        states_file = self.cache / f"{cell.name}.safetensors"
        known = self.results.finished(cell)
        if known and states_file.is_file():
            states = load_file(states_file)
            transcripts = tuple(as_transcript(row) for row in known["result"]["transcripts"])
            return TeacherForcedOutput(transcripts, tuple(states[str(i)] for i in range(len(transcripts))))
        started = time.perf_counter()
        heard: TeacherForcedOutput = self.listener(model, data).evaluate(self.model(model)[0], self.plan.language)
        self.cache.mkdir(parents=True, exist_ok=True)
        partial = states_file.with_name(f".{os.getpid()}.{states_file.name}")
        save_file({str(i): state.contiguous() for i, state in enumerate(heard.states)}, partial)
        partial.replace(states_file)
        result = {"transcripts": [asdict(transcript) for transcript in heard.transcripts]}
        self.results.write(cell, {"seconds": time.perf_counter() - started}, result=result)
        return heard

    def _labels(self, model: str, seed: int) -> dict[str, Any]:
        data = self.data(str(self.plan.calibration))[0].sample(self.plan.utterances, seed)
        key = {"weights": self.model(model)[1], "recordings": data.digest(), "language": self.plan.language}
        file = self.cache / f"{Cell('labels', key | {'environment': self._environment}).name}.json"

        def transcribe() -> dict[str, Any]:
            speech = prepare_speech(self.model(model)[0], data, language=self.plan.language)
            return {name: list(tokens) for name, tokens in zip(speech.ids, speech.transcripts, strict=True)}

        return once(file, transcribe)

    def _cell_of(self, job: Quantization) -> Cell:
        key = {
            "model": job.model,
            "weights": self.model(job.model)[1],
            "method": job.method,
            "recipe": to_plain(job.recipe),
            "target": self.plan.target,
            "seed": job.seed,
            "environment": self._environment,
        }
        if job.seed is not None:
            drawn = self.data(str(self.plan.calibration))[0].sample(self.plan.utterances, job.seed)
            key |= {
                "calibration": str(self.plan.calibration),
                "utterances": len(drawn),
                "recordings": drawn.digest(),
                "language": self.plan.language,
                "batch_size": self.plan.batch_size,
            }
        return Cell("quantize", key)

    def _cell_of_evaluation(self, quantized: Cell, data: str, runtime: str) -> Cell:
        key = {
            "quantized": quantized.name,
            "data": data,
            "recordings": self.data(data)[1],
            "language": self.plan.language,
            "environment": self._environment,
        }
        if runtime != "torch":
            key |= {"runtime": runtime, "runtime_versions": {name: version(name) for name in backend_named(runtime).packages}}
        return Cell("evaluate", key)

    def _quantization_cells(self, job: Quantization) -> Iterator[tuple[str, str, str]]:
        cell = self._cell_of(job)
        evaluations = dict[tuple[str, str], Cell]()
        for runtime in self.plan.runtimes:
            for data in self.plan.data:
                try:
                    evaluations[data, runtime] = self._cell_of_evaluation(cell, data, runtime)
                except SottovoceError as exc:
                    yield f"{_called(job)} on {data}", "failed", str(exc)
        missing = [at for at, evaluation in evaluations.items() if not self.results.finished(evaluation)]
        for at in evaluations.keys() - set(missing):
            yield evaluations[at].name, "found", ""
        known = self.results.finished(cell) is not None
        if known and not missing:
            yield cell.name, "found", ""
            return
        try:
            model = self._quantized(job, cell)
        except Exception as exc:
            self.results.write(cell, {}, error=f"{type(exc).__name__}: {exc}")
            raise
        yield cell.name, "found" if known else "computed", ""
        for data, runtime in missing:
            evaluation = evaluations[data, runtime]
            try:
                if runtime == "torch":
                    self._evaluate(job, model, data, evaluation)
                else:
                    self._evaluate_in(runtime, self.cache / cell.name, data, evaluation)
            except Exception as exc:  # noqa: BLE001 - one bad data set must not keep the others from being measured
                self.results.write(evaluation, {}, error=f"{type(exc).__name__}: {exc}")
                yield f"{_called(job)} on {data} in {runtime}", "failed", f"{type(exc).__name__}: {exc}"
            else:
                yield evaluation.name, "computed", ""
        if all(self.results.finished(evaluation) for evaluation in evaluations.values()):
            shutil.rmtree(self.cache / cell.name, ignore_errors=True)
            for runtime in self.plan.runtimes:
                _remove(self.cache / f"{cell.name}.{runtime}")

    def _quantized(self, job: Quantization, cell: Cell) -> SpeechModel:
        """The quantized model: from the folder of an interrupted run, or made now."""
        original, folder = self.model(job.model)[0], self.cache / cell.name
        if self.results.finished(cell) and folder.is_dir():
            return original.with_network(load_quantized(folder)[0])
        speech, state = None, RunState()
        if job.seed is not None:
            data = self.data(str(self.plan.calibration))[0].sample(self.plan.utterances, job.seed)
            state.add_transcripts(self._labels(job.model, job.seed))
            speech = prepare_speech(original, data, language=self.plan.language, state=state)
        result: QuantizedModel = quantize_model(
            original,
            make_plan(original, job.recipe, target_named(self.plan.target)),
            job.recipe,
            speech,
            batch_size=self.plan.batch_size,
            seed=job.seed or 0,
        )
        save_quantized(result, folder, overwrite=True)
        self.results.write(
            cell,
            {"solving_s": result.timing.solving_s},
            result={"layers": [asdict(report) for report in result.reports], "calibration": to_plain(result.calibration)},
        )
        return result.model

    def _evaluate(self, job: Quantization, model: SpeechModel, data: str, cell: Cell) -> None:
        started = time.perf_counter()
        reference = self.reference(job.model, data)
        heard = self.listener(job.model, data).evaluate(model, self.plan.language, reference.tokens)
        distances = divergence(self.model(job.model)[0], reference, model, heard)
        result = {
            "transcripts": [asdict(transcript) for transcript in heard.transcripts],
            "mean_kl": float(distances.mean()),
            "median_kl": float(distances.median()),
            "tokens": len(distances),
        }
        self.results.write(cell, {"seconds": time.perf_counter() - started}, result=result)

    def _evaluate_in(self, runtime: str, folder: Path, data: str, cell: Cell) -> None:
        """Words alone: a runtime does not show its distributions."""
        started = time.perf_counter()
        file = folder.with_name(f"{folder.name}.{runtime}")
        if not file.exists():
            export(folder, runtime, file, verify=False)
        recognizer = open_runtime(runtime, file, torch.get_num_threads())
        heard = transcribe_data(recognizer, self.data(data)[0], language=self.plan.language)
        result = {"transcripts": [asdict(transcript) for transcript in heard.transcripts]}
        timing = {"seconds": time.perf_counter() - started, "encoder_s": heard.encoder_s, "decoder_s": heard.decoder_s}
        self.results.write(cell, timing, result=result)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _called(job: Quantization) -> str:
    seed = "" if job.seed is None else f", seed {job.seed}"
    return f"{job.model}, {job.method}, {job.recipe.format.code_bits} bits{seed}"
