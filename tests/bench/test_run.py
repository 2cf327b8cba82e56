"""How a bench runs: what is refused before any work, what a stop and a lost process leave, and what the user sees on the way."""

import json
import multiprocessing
import os
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from sottovoce.backends.registry import BACKENDS
from sottovoce.bench import plan_from, read_results, run_bench
from sottovoce.bench import run as bench_run
from sottovoce.bench.plan import BenchPlan
from sottovoce.errors import MachineError, MissingDependencyError, OutputError, RecipeError

PATIENCE_S = 60.0


@pytest.fixture
def plan(model_folder: Path) -> BenchPlan:
    return plan_from({"models": [str(model_folder)], "methods": ["rtn"], "bits": [4], "seeds": [0], "data": ["test"]})


@pytest.fixture
def data_root(tmp_path: Path, speech_folder: Path) -> Path:
    """A folder with the set `test` of two recordings, and `silent`, the same without texts."""
    rows = [json.loads(line) for line in (speech_folder / "manifest.jsonl").read_text().splitlines()][:2]
    for name, left_out in (("test", ()), ("silent", ("text",))):
        (tmp_path / name).mkdir()
        lines = [{key: value for key, value in row.items() if key not in left_out} for row in rows]
        lines = [row | {"audio": str(speech_folder / row["audio"])} for row in lines]
        (tmp_path / name / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return tmp_path


def test_progress_is_told_between_the_jobs(plan: BenchPlan, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    real = bench_run.BenchWorker.run

    def run(worker: bench_run.BenchWorker, job: bench_run.Job) -> list[bench_run.CellOutcome]:
        told.append("job")
        return real(worker, job)

    monkeypatch.setattr(bench_run.BenchWorker, "run", run)
    outcome = run_bench(plan, data_root / "out", data=data_root, threads=1, progress=lambda _, done, *more: told.append(f"{done} {more}"))
    assert not outcome.failed
    running = ["0 (2, '1 running')", "job", "1 (2, '0 running')", "1 (2, '1 running')", "job", "2 (2, '0 running')"]
    assert told == running


def test_the_folder_runtime_needs_no_export(plan: BenchPlan, data_root: Path) -> None:
    outcome = run_bench(replace(plan, runtimes=("compressed-tensors",)), data_root / "out", data=data_root, threads=1)
    assert not outcome.failed
    assert {record.runtime for record in read_results(data_root / "out").evaluations} == {"torch", "compressed-tensors"}
    assert not [file for file in (data_root / "out" / "cache").iterdir() if file.name.startswith("quantization")]


def test_a_runtime_without_its_package_is_refused_before_any_work(
    plan: BenchPlan, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "mlx", replace(BACKENDS["mlx"], packages=("no-such-package",)))
    with pytest.raises(MissingDependencyError, match=r"running mlx needs the package no-such-package; pip install 'sottovoce\[mlx\]'"):
        run_bench(replace(plan, runtimes=("torch", "mlx")), data_root / "out", data=data_root, threads=1)
    assert not (data_root / "out").exists()


def test_a_set_without_texts_fails_before_it_is_transcribed(plan: BenchPlan, data_root: Path) -> None:
    outcome = run_bench(replace(plan, data=("silent", "test")), data_root / "out", data=data_root, threads=1)
    assert {"no text is known of its recordings" in failed.error for failed in outcome.failed} == {True}
    assert {row.data for row in outcome.summary.rows} == {"test"}
    assert len(list((data_root / "out" / "cells").glob("reference-*"))) == 1


def test_two_benches_in_one_folder_are_refused(plan: BenchPlan, data_root: Path) -> None:
    (data_root / "out" / "cache").mkdir(parents=True)
    with filelock.FileLock(data_root / "out" / "cache" / "lock"), pytest.raises(OutputError, match="another bench is writing there"):
        run_bench(plan, data_root / "out", data=data_root, threads=1)
    assert not (data_root / "out" / "bench.json").exists()  # which is the other one's


def test_no_process_is_refused(plan: BenchPlan, data_root: Path) -> None:
    with pytest.raises(RecipeError, match="0 processes cannot run a bench; give 1 or more"):
        run_bench(plan, data_root / "out", data=data_root, jobs=0)


def test_a_finished_cell_is_not_replaced_by_an_error(plan: BenchPlan, data_root: Path) -> None:
    run_bench(plan, data_root / "out", data=data_root, threads=1)
    store = bench_run.CellStore(data_root / "out")
    (name,) = (name for name in store.all() if name.startswith("evaluation"))
    cell = store.all()[name]
    store.write_error(replace(cell, result=None, error="no memory"))
    assert store.all()[name] == cell


def test_a_stop_ends_the_processes_and_drops_what_waits(plan: BenchPlan, tmp_path: Path) -> None:
    began, waiting = time.monotonic(), list[Future[None]]()

    def stopped_while_two_run() -> None:
        with bench_run._process_pool(2, (plan, tmp_path / "out", tmp_path, 1)) as pool:
            waiting.extend(pool.submit(time.sleep, 2 * PATIENCE_S) for _ in range(6))
            while not waiting[0].running() and time.monotonic() < began + PATIENCE_S:
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_while_two_run()
    while multiprocessing.active_children() and time.monotonic() < began + PATIENCE_S:
        time.sleep(0.05)
    assert not multiprocessing.active_children()
    assert all(future.done() for future in waiting[4:])


def test_a_lost_process_is_told_in_a_sentence(plan: BenchPlan, tmp_path: Path) -> None:
    arguments = (plan, tmp_path / "out", tmp_path, 1)
    with pytest.raises(MachineError, match="a process of the bench was ended.*finished cells are kept.*--jobs"):
        with bench_run._process_pool(2, arguments) as pool:
            pool.submit(os._exit, 1).result()
