"""Compute every cell of a bench that is not there yet, in one process or several.

First what all cells of a model share (the original's transcripts and decoder states, the calibration transcripts), then one
quantized model after the other, each on all data sets. Whatever is finished is on disk and is not computed again.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sottovoce.bench.collect import is_bench
from sottovoce.bench.plan import BenchPlan, plan_from, read_plan
from sottovoce.bench.records import EVALUATIONS, LAYERS, read_records, write_manifest
from sottovoce.bench.summary import TABLES, BenchSummary, write_summary
from sottovoce.bench.worker import BenchWorker, CellOutcome, Job, LabelsJob, ReferenceJob
from sottovoce.errors import OutputError
from sottovoce.system.cluster import Cluster, joined_cluster
from sottovoce.system.progress import Progress, silent

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

    Raises `RecipeError` for a recipe that cannot be carried out, `OutputError` if `out` cannot be written.
    """
    plan = recipe if isinstance(recipe, BenchPlan) else plan_from(recipe) if isinstance(recipe, Mapping) else read_plan(recipe)
    if data is None:
        data = Path(recipe).expanduser().parent if isinstance(recipe, (str, Path)) else "."
    out = Path(out).expanduser().absolute()
    _record_recipe(out, plan)
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    stages = _plan_jobs(plan)
    outcomes, done, total = list[CellOutcome](), 0, sum(map(len, stages))
    arguments = (plan, out, Path(data).expanduser().absolute(), threads)
    with joined_cluster(ray) as cluster, _worker_processes(jobs, arguments, cluster) as submit:
        jobs = jobs if cluster is None else cluster.slots
        for stage in stages:
            futures = [submit(job) for job in stage]
            for future in as_completed(futures):
                running = min(jobs, len(futures) - sum(f.done() for f in futures))
                outcomes += future.result()
                done += 1
                progress("bench", done, total, f"{running} running")
    return BenchOutcome(
        computed=tuple(outcome.name for outcome in outcomes if outcome.state == "computed"),
        found=tuple(outcome.name for outcome in outcomes if outcome.state == "found"),
        failed=tuple(outcome for outcome in outcomes if outcome.state == "failed"),
        summary=write_summary(out),
    )


def _record_recipe(out: Path, plan: BenchPlan) -> None:
    """Put the recipe into the manifest of `out` before any work, so that a stopped bench says what it was.

    Raises `OutputError` if `out` is no folder, or holds files that are no bench's and that the results would replace.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, and results are written to a folder; give another --out")
    if not is_bench(out) and (foreign := [name for name in RESULT_FILES if (out / name).exists()]):
        raise OutputError(f"{out}: holds {foreign[0]}, which is of no bench and would be replaced; give another --out")
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
def _worker_processes(
    jobs: int, arguments: tuple[BenchPlan, Path, Path, int], cluster: Cluster | None
) -> Iterator[Callable[[Job], Future[list[CellOutcome]]]]:
    """Give a function that takes a job and returns a future; other processes are started only if several are asked for."""
    if cluster is not None:
        yield lambda job: cluster.submit(_run_on_cluster, arguments, job)
        return
    if jobs == 1:
        threads_before = torch.get_num_threads()
        worker = _make_worker(*arguments)

        def run_now(job: Job) -> Future[list[CellOutcome]]:
            future: Future[list[CellOutcome]] = Future()
            future.set_result(worker.run(job))
            return future

        try:
            yield run_now
        finally:
            torch.set_num_threads(threads_before)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_worker_process, arguments) as pool:
        yield lambda job: pool.submit(_run_job, job)


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


def _run_on_cluster(arguments: tuple[BenchPlan, Path, Path, int], job: Job) -> list[CellOutcome]:
    """Run a job in a worker of a cluster, which may have run others. What a lost worker had finished is found in the folder."""
    key = arguments[0].content, arguments[1:]
    if not _on_cluster or _on_cluster[0][0] != key:
        _on_cluster[:] = [(key, _make_worker(*arguments))]
    return _on_cluster[0][1].run(job)


_on_cluster: list[tuple[Any, BenchWorker]] = []


def _run_job(job: Job) -> list[CellOutcome]:
    return _own_worker[0].run(job)
