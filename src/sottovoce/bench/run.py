"""Compute every cell of a bench that is not there yet, in one process or several.

First what all cells of a model share (the original's transcripts and decoder states, the calibration transcripts), then one
quantized model after the other, each on all data sets. Whatever is finished is on disk and is not computed again.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import filelock
import torch

from sottovoce.backends.registry import backend_named
from sottovoce.bench.cells import CellStore
from sottovoce.bench.collect import is_bench, prefer
from sottovoce.bench.plan import BenchPlan, plan_from, read_plan
from sottovoce.bench.records import EVALUATIONS, LAYERS, read_records, write_manifest
from sottovoce.bench.summary import TABLES, BenchSummary, write_summary
from sottovoce.bench.worker import BenchWorker, CellOutcome, Job, LabelsJob, ReferenceJob
from sottovoce.errors import MachineError, OutputError, RecipeError
from sottovoce.system.cluster import Cluster, joined_cluster
from sottovoce.system.progress import Progress, silent
from sottovoce.system.spawn import spawn_context

WorkerArguments: TypeAlias = tuple[BenchPlan, Path, Path, int]
Stage: TypeAlias = Callable[[Sequence[Job]], Iterable[list[CellOutcome]]]
LOCK = "lock"
RESULT_FILES = (*TABLES, EVALUATIONS, LAYERS)  # beside the manifest, by which a bench is known


@dataclass(frozen=True, kw_only=True)
class BenchOutcome:
    """The cells that were computed now, found finished, and failed (with why), and what follows from all in the folder."""

    computed: tuple[str, ...]
    found: tuple[str, ...]
    failed: tuple[CellOutcome, ...]
    summary: BenchSummary


def run_bench(
    recipe: str | Path | Mapping[str, Any] | BenchPlan,
    out: str | Path,
    *,
    data: str | Path | None = None,
    jobs: int = 1,
    threads: int | None = None,
    ray: str | None = None,
    progress: Progress = silent,
) -> BenchOutcome:
    """Finish all cells of a recipe in the folder `out`, and write tables and figures.

    `recipe`: a TOML file, what such a file holds, or a plan. `data`: where its data sets lie (default: beside the recipe file, else
    the current folder). `jobs`: processes; `threads`: of each (all cores shared evenly if omitted). `ray`: the
    address of a Ray cluster that runs the jobs, or "local" for one on this machine; `out` and `data` are then on a file system that all of
    its machines have. A cell that fails is recorded with
    its error, does not stop the others, and is tried again the next time.

    Raises `RecipeError` for a recipe that cannot be carried out, `OutputError` if `out` cannot be written or another process writes there,
    `MissingDependencyError` without the packages of a runtime, and `MachineError` if a process was lost. Finished cells stay.
    """
    plan = recipe if isinstance(recipe, BenchPlan) else plan_from(recipe) if isinstance(recipe, Mapping) else read_plan(recipe)
    if data is None:
        data = Path(recipe).expanduser().parent if isinstance(recipe, (str, Path)) else "."
    out = Path(out).expanduser().absolute()
    if jobs < 1:
        raise RecipeError(f"{jobs} processes cannot run a bench; give 1 or more")
    for runtime in plan.runtimes:
        backend_named(runtime).need_packages()
    threads = threads or max(1, usable_cores() // jobs)
    outcomes = list[CellOutcome]()
    with _alone_in(out, plan):
        for outcome in _compute(plan, (plan, out, Path(data).expanduser().absolute(), threads), jobs, ray, progress):
            outcomes += outcome
        prefer(CellStore(out), [outcome.name for outcome in outcomes if outcome.state == "found"])
        summary = write_summary(out)
    return BenchOutcome(
        computed=tuple(outcome.name for outcome in outcomes if outcome.state == "computed"),
        found=tuple(outcome.name for outcome in outcomes if outcome.state == "found"),
        failed=tuple(outcome for outcome in outcomes if outcome.state == "failed"),
        summary=summary,
    )


def usable_cores() -> int:
    """Return how many cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _alone_in(out: Path, plan: BenchPlan) -> Iterator[None]:
    """Hold the folder of results for this process, and put the recipe into its manifest.

    Raises `OutputError` if `out` is no folder of a bench, or another process holds it: two benches in one folder would drop each other's
    models and replace each other's finished cells.
    """
    _refuse_foreign(out)
    try:
        (out / "cache").mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / "cache" / LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout as exc:
        raise OutputError(f"{out}: another bench is writing there; wait for that one, or give another --out") from exc
    except OSError as exc:
        raise OutputError(f"{out}: cannot be written ({exc}); choose another folder") from exc
    try:
        _record_recipe(out, plan)
        yield
    finally:
        lock.release()


def _compute(plan: BenchPlan, arguments: WorkerArguments, jobs: int, ray: str | None, progress: Progress) -> Iterator[list[CellOutcome]]:
    """Run all jobs of a plan, and give the outcomes of each as it ends."""
    stages = _plan_jobs(plan)
    done, total = 0, sum(map(len, stages))
    with joined_cluster(ray, threads=arguments[3]) as cluster, _workers(jobs, arguments, cluster) as run_stage:
        slots = jobs if cluster is None else cluster.slots
        for stage in stages:
            progress("bench", done, total, f"{min(slots, len(stage))} running")
            for left, outcome in zip(reversed(range(len(stage))), run_stage(stage), strict=True):
                done += 1
                progress("bench", done, total, f"{min(slots, left)} running")
                yield outcome


def _refuse_foreign(out: Path) -> None:
    """Raise `OutputError` if `out` is no folder, or holds files that are no bench's and that the results would replace."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, and results are written to a folder; give another --out")
    if not is_bench(out) and (foreign := [name for name in RESULT_FILES if (out / name).exists()]):
        raise OutputError(f"{out}: holds {foreign[0]}, which is of no bench and would be replaced; give another --out")


def _record_recipe(out: Path, plan: BenchPlan) -> None:
    """Put the recipe into the manifest of `out` before any work, so that a stopped bench says what it was. Raises `OutputError`."""
    manifest = read_records(out).manifest
    if plan.content not in manifest.recipes or not is_bench(out):
        try:
            write_manifest(out, replace(manifest, recipes=(*manifest.recipes, dict(plan.content))))
        except OSError as exc:
            raise OutputError(f"{out}: cannot be written ({exc}); choose another folder") from exc


def _plan_jobs(plan: BenchPlan) -> tuple[list[Job], list[Job]]:
    """List the jobs of two stages; those of the second need the results of the first."""
    shared: list[Job] = [ReferenceJob(model=model, data=data) for model in plan.models for data in plan.data]
    if plan.calibration is not None and any(method.n_networks for method in plan.methods.values()):
        shared += [LabelsJob(model=model, seed=seed) for model in plan.models for seed in plan.seeds]
    return shared, list(plan.quantizations())


@contextmanager
def _workers(jobs: int, arguments: WorkerArguments, cluster: Cluster | None) -> Iterator[Stage]:
    """Give a function that runs independent jobs and gives their outcomes as they end: in this process, in others, or on a cluster."""
    if cluster is not None:
        yield lambda stage: (done.result() for done in as_completed([cluster.submit(_run_on_cluster, arguments, job) for job in stage]))
    elif jobs == 1:
        threads_before = torch.get_num_threads()
        worker = _make_worker(*arguments)
        try:
            yield lambda stage: map(worker.run, stage)
        finally:
            torch.set_num_threads(threads_before)
    else:
        with _process_pool(jobs, arguments) as pool:
            yield lambda stage: (done.result() for done in as_completed([pool.submit(_run_job, job) for job in stage]))


@contextmanager
def _process_pool(jobs: int, arguments: WorkerArguments) -> Iterator[ProcessPoolExecutor]:
    """Start processes for jobs. An error or a stop here ends them at once, and drops the jobs that wait.

    Raises `MachineError` if one of them was lost.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, spawn_context(arguments), _start_worker_process, arguments)
    try:
        yield pool
    except BaseException as exc:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        if isinstance(exc, BrokenProcessPool):
            raise MachineError(
                "a process of the bench was ended from outside, often for want of memory; finished cells are kept: start the same command "
                "again, with fewer --jobs"
            ) from exc
        raise
    pool.shutdown()


_own_worker: list[BenchWorker] = []  # of a process of the pool, whose tasks have no other way to it


def _start_worker_process(plan: BenchPlan, out: Path, data_root: Path, threads: int) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _own_worker.append(_make_worker(plan, out, data_root, threads))


def _exit_with_parent() -> None:
    """End a worker whose parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make_worker(plan: BenchPlan, out: Path, data_root: Path, threads: int) -> BenchWorker:
    torch.set_num_threads(threads)
    return BenchWorker(plan, out, data_root)


def _run_on_cluster(arguments: WorkerArguments, job: Job) -> list[CellOutcome]:
    """Run a job in a worker of a cluster, which may have run others. What a lost worker had finished is found in the folder."""
    torch.set_num_threads(arguments[3])  # what keys of cells say
    key = arguments[0].content, arguments[1:]
    if not _on_cluster or _on_cluster[0][0] != key:
        _on_cluster[:] = [(key, _make_worker(*arguments))]
    return _on_cluster[0][1].run(job)


_on_cluster: list[tuple[Any, BenchWorker]] = []


def _run_job(job: Job) -> list[CellOutcome]:
    return _own_worker[0].run(job)
