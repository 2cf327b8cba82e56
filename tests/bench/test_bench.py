"""The bench: every cell once, the same bytes after any stop, and tables that follow from the results alone."""

import csv
import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from sottovoce.bench import (
    BenchManifest,
    as_csv,
    as_markdown,
    plan_from,
    read_plan,
    read_results,
    run_bench,
    summarize,
    write_summary,
)
from sottovoce.bench.cells import CellStore, Environment
from sottovoce.bench.collect import finished_evaluations
from sottovoce.bench.records import write_manifest
from sottovoce.cli.main import main
from sottovoce.data.load import load_data
from sottovoce.errors import DataError, RecipeError
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_transcripts
from sottovoce.models.load import load_model
from sottovoce.system.versions import environment, processor
from tests.forked import Forked

RECIPE = """
models = [{model!r}]
methods = ["rtn", "gptq", "strong"]
bits = [4, 3]
seeds = [0, 1]
data = ["test"]
calibration = "calibration"
utterances = 6
group_size = 32

[method.strong]
base = "qep"
strength = 1.0
"""
KILLS = int(os.environ.get("SOTTOVOCE_KILLS", "3"))
CELLS = 1 + 2 * (1 + 2 + 2) * 2  # the reference; per width RTN once and two methods by seed, quantized and evaluated


@pytest.fixture(scope="module")
def bench_root(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, speech_folder: Path) -> Path:
    """A folder with a recipe and its two data sets."""
    root = tmp_path_factory.mktemp("bench")
    rows = [json.loads(line) for line in (speech_folder / "manifest.jsonl").read_text().splitlines()]
    for name, part in (("calibration", rows[:8]), ("test", rows[8:])):
        (root / name).mkdir()
        lines = [json.dumps(row | {"audio": str(speech_folder / row["audio"])}) for row in part]
        (root / name / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    (root / "recipe.toml").write_text(RECIPE.format(model=str(model_folder)))
    return root


@pytest.fixture(scope="module")
def undisturbed(bench_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    outcome = run_bench(bench_root / "recipe.toml", out, threads=1)
    assert not outcome.failed
    assert len(outcome.computed) == CELLS
    return out


def contents(out: Path) -> dict[str, dict[str, object]]:
    """All results by file name, without how they were made."""
    return {
        file.name: {key: value for key, value in json.loads(file.read_text()).items() if key != "made"}
        for file in (out / "cells").glob("*.json")
    }


def compact(out: Path) -> dict[str, bytes]:
    """The files that are kept when the cells are not, and the tables."""
    return {name: (out / name).read_bytes() for name in ("bench.json", "evaluations.jsonl", "layers.jsonl", "results.csv", "results.md")}


def test_a_finished_bench_computes_nothing_again(bench_root: Path, undisturbed: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in (undisturbed / "cells").iterdir()}
    outcome = run_bench(read_plan(bench_root / "recipe.toml"), undisturbed, data=bench_root, threads=1)
    assert (len(outcome.computed), len(outcome.found)) == (0, CELLS)
    assert before == {file: file.stat().st_mtime_ns for file in (undisturbed / "cells").iterdir()}
    assert not [file for file in (undisturbed / "cache").iterdir() if file.name.startswith("quantization")]


def test_killed_and_started_again_it_ends_the_same(bench_root: Path, undisturbed: Path, tmp_path: Path) -> None:
    command = ["bench", bench_root / "recipe.toml", "--out", tmp_path / "out", "--threads", "1"]
    moments = random.Random(4)  # noqa: S311 - moments to kill at, no secret
    for _ in range(KILLS):
        process = Forked(command, tmp_path / "logs")
        cells = tmp_path / "out" / "cells"
        count = len(list(cells.glob("*.json"))) if cells.is_dir() else 0
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if cells.is_dir() and len(list(cells.glob("*.json"))) > count + moments.randrange(4):
                break
            time.sleep(0.01)
        time.sleep(0.3 * moments.random())
        process.kill()
    assert Forked(command, tmp_path / "logs").finish()[0] == 0
    assert contents(tmp_path / "out") == contents(undisturbed)
    assert compact(tmp_path / "out") == compact(undisturbed)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_no_process_outlives_a_killed_bench(bench_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sottovoce", "bench", bench_root / "recipe.toml", "--out", tmp_path / "out"]
    process = subprocess.Popen([*map(str, command), "--jobs", "2", "--threads", "1"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list((tmp_path / "out").glob("cells/reference-*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while alive := [pid for pid in children if _is_running(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def _is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_processes_give_what_one_gives(bench_root: Path, undisturbed: Path, tmp_path: Path) -> None:
    outcome = run_bench(tomllib.loads((bench_root / "recipe.toml").read_text()), tmp_path, data=bench_root, jobs=2, threads=1)
    assert not outcome.failed
    assert contents(tmp_path) == contents(undisturbed)
    assert compact(tmp_path) == compact(undisturbed)


def test_a_failed_cell_is_recorded_and_the_rest_goes_on(bench_root: Path, tmp_path: Path) -> None:
    recipe = (bench_root / "recipe.toml").read_text().replace('["test"]', '["test", "broken"]')
    (tmp_path / "recipe.toml").write_text(recipe.replace("[4, 3]", "[3]").replace("[0, 1]", "[0]"))
    for name in ("calibration", "test"):
        (tmp_path / name).symlink_to(bench_root / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.jsonl").write_text('{"audio": "gone.wav", "text": "x"}\n')
    result = CliRunner().invoke(main, ["bench", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "gone.wav" in result.stderr
    results = read_results(tmp_path / "out")
    assert {record.data for record in results.evaluations} == {"test"}
    assert {record.method for record in results.evaluations} == {"none", "rtn", "gptq", "strong"}


def transcripts(out: Path) -> dict[tuple[str, int, int | None], tuple[Transcript, ...]]:
    """Of every evaluation, by method, bits and seed."""
    found = finished_evaluations(CellStore(out).all())
    return {(evaluation.method, evaluation.bits, evaluation.seed): evaluation.transcripts for evaluation in found}


def test_the_table_follows_from_the_transcripts(undisturbed: Path) -> None:
    results = read_results(undisturbed)
    rows = {(row.method, row.bits): row for row in summarize(results.evaluations)}
    heard = transcripts(undisturbed)
    scores = [score_transcripts(heard["gptq", 3, seed], heard["none", 16, None]) for seed in (0, 1)]
    divergences = [r.divergence.mean for r in results.evaluations if (r.method, r.bits) == ("gptq", 3) and r.divergence is not None]
    row, rounded = rows["gptq", 3], rows["rtn", 3]
    assert row.seeds == len(divergences) == 2
    assert rounded.seeds == 1
    assert row.wer == pytest.approx(statistics.fmean(score.wer for score in scores))
    assert row.deviation == pytest.approx(statistics.stdev(score.wer for score in scores))
    paired = [score.paired for score in scores if score.paired is not None]
    assert row.difference == pytest.approx(
        (statistics.fmean(p.difference for p in paired), min(p.low for p in paired), max(p.high for p in paired))
    )
    assert (row.low, row.high) == (min(score.low for score in scores), max(score.high for score in scores))
    assert row.looped == statistics.fmean(len(score.looped) for score in scores)
    assert row.truncated == statistics.fmean(len(score.truncated) for score in scores)
    assert row.mean_kl == pytest.approx(statistics.fmean(divergences))
    assert row.gain == pytest.approx((rounded.wer - row.wer) / rounded.wer)
    assert row.calibration_share is None or 0 <= row.calibration_share <= 1
    assert rows["none", 16].mean_kl == 0
    table = list(csv.DictReader(io.StringIO(as_csv(list(rows.values())))))
    assert {line["method"] for line in table} == {"none", "rtn", "gptq", "strong"}
    assert float(next(line for line in table if line["method"] == "rtn" and line["bits"] == "3")["wer"]) == rounded.wer
    assert as_markdown(list(rows.values())).count("| strong |") == 2


def test_the_compact_files_alone_give_the_same(undisturbed: Path, tmp_path: Path) -> None:
    for name in ("bench.json", "evaluations.jsonl", "layers.jsonl"):
        shutil.copy(undisturbed / name, tmp_path)
    assert read_results(tmp_path) == read_results(undisturbed)
    write_summary(tmp_path)
    assert compact(tmp_path) == compact(undisturbed)
    drawn = {file.name: file.read_bytes() for file in tmp_path.glob("*.svg")}
    assert drawn == {file.name: file.read_bytes() for file in undisturbed.glob("*.svg")}
    assert len(drawn) == 2
    assert CliRunner().invoke(main, ["report", str(tmp_path), "--html", str(tmp_path / "page.html")]).exit_code == 0
    with pytest.raises(DataError, match="holds no results of a bench"):
        read_results(tmp_path / "nothing")


def test_the_manifest_says_what_was_run_on_what(bench_root: Path, undisturbed: Path) -> None:
    manifest = read_results(undisturbed).manifest
    content = tomllib.loads((bench_root / "recipe.toml").read_text())
    assert manifest.recipes == (content,)
    assert plan_from(manifest.recipes[0]) == read_plan(bench_root / "recipe.toml")
    (model,) = content["models"]
    assert manifest.weights == {model: load_model(model).digest()}
    assert manifest.recordings == {"test": load_data(bench_root / "test").digest()}
    samples = [load_data(bench_root / "calibration").sample(6, seed) for seed in (0, 1)]
    assert {(c.data, c.seed, c.utterances, c.recordings) for c in manifest.calibrations} == {
        ("calibration", seed, 6, sample.digest()) for seed, sample in enumerate(samples)
    }
    assert manifest.processors == (processor(),)
    assert manifest.environments == (Environment(versions=environment(), threads=1),)


def test_results_without_cells_stay_when_another_recipe_is_run(bench_root: Path, undisturbed: Path, tmp_path: Path) -> None:
    for name in ("bench.json", "evaluations.jsonl", "layers.jsonl"):
        shutil.copy(undisturbed / name, tmp_path)
    content = tomllib.loads((bench_root / "recipe.toml").read_text()) | {"methods": ["rtn"], "bits": [2], "runtimes": ["torch"]}
    outcome = run_bench(content, tmp_path, data=bench_root, threads=1)
    assert len(outcome.computed) == 3
    before, after = read_results(undisturbed), read_results(tmp_path)
    assert set(before.evaluations) < set(after.evaluations)
    assert {record.bits for record in set(after.evaluations) - set(before.evaluations)} == {2}
    assert after.manifest.recipes == (*before.manifest.recipes, content)
    stale = BenchManifest(recordings={"test": "others"}, weights=before.manifest.weights)
    write_manifest(tmp_path, stale)  # as if the data set had changed since
    assert {(record.method, record.bits) for record in read_results(tmp_path).evaluations} == {("none", 16), ("rtn", 2)}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bench.json", lambda text: text.replace('"version": 1', '"version": 2'), "version: wanted 1, got 2"),
        ("bench.json", lambda text: text[:-9], "delimiter"),
        ("evaluations.jsonl", lambda text: text.replace('"words":[', '"words":[1,'), "figures in every column"),
        ("evaluations.jsonl", lambda text: text.replace('"bits":', '"bitz":'), "'bitz'"),
        ("evaluations.jsonl", lambda text: text.replace('"bits":4', '"bits":"4"'), "bits: wanted a whole number"),
    ],
)
def test_damaged_records_are_refused(undisturbed: Path, tmp_path: Path, name: str, change: Callable[[str], str], message: str) -> None:
    for file in ("bench.json", "evaluations.jsonl", "layers.jsonl"):
        shutil.copy(undisturbed / file, tmp_path)
    (tmp_path / name).write_text(change((tmp_path / name).read_text()))
    with pytest.raises(DataError, match=f"{name}: is damaged.*{message}"):
        read_results(tmp_path)


def test_cells_are_read_strictly(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "cells", tmp_path / "cells")
    cell = next((tmp_path / "cells").glob("evaluation-*.json"))
    text = cell.read_text()
    assert text.count("\n") == 1
    for damaged in (text[:-9], text.replace('"evaluation"', '"evaluate"', 1), text.replace('"threads": 1', '"threads": "1"'), "[]"):
        assert damaged != text
        cell.write_text(damaged)
        with pytest.raises(DataError, match=f"{cell.name}: is damaged or of another version .*delete it"):
            read_results(tmp_path)


def test_of_two_measurements_of_one_thing_the_newest_counts(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "cells", tmp_path / "cells")
    before = transcripts(tmp_path)
    old = next(file for file in (tmp_path / "cells").glob("reference-*.json"))
    content = json.loads(old.read_text())
    content["key"]["environment"]["versions"]["torch"] = "of tomorrow"
    content["result"]["transcripts"][0]["text"] = "newer"
    content["made"]["finished"] += 1
    new = tmp_path / "cells" / "reference-0000000000000000.json"
    new.write_text(json.dumps(content))
    os.utime(new, (0, 0))  # copying gives files any times
    after = transcripts(tmp_path)
    assert after.keys() == before.keys()
    assert after["none", 16, None][0].text == "newer"
    assert len(read_results(tmp_path).evaluations) == len(read_results(undisturbed).evaluations)


def test_figures_are_drawn_and_repeat(bench_root: Path, undisturbed: Path) -> None:
    command = ["bench", str(bench_root / "recipe.toml"), "--out", str(undisturbed), "--tables-only"]
    drawn = []
    for _ in range(2):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.stderr
        assert "not measured yet" not in result.stderr
        drawn.append({file.name: file.read_bytes() for file in undisturbed.glob("*.svg")})
    assert drawn[0] == drawn[1]
    assert {name.rsplit("-", 1)[-1] for name in drawn[0]} == {
        "wer.svg",
        "kl.svg",
    }  # no method with strengths by layer here
    assert (undisturbed / "results.md").read_text().startswith("**")


def test_tables_say_what_of_the_recipe_is_not_measured_yet(bench_root: Path, undisturbed: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "more.toml"
    text = (bench_root / "recipe.toml").read_text()
    recipe.write_text(text.replace("seeds = [0", "seeds = [7, 0", 1))
    assert recipe.read_text() != text
    plan, measured = read_plan(recipe), read_plan(bench_root / "recipe.toml")
    more = (len(plan.quantizations()) - len(measured.quantizations())) * len(plan.data)
    result = CliRunner().invoke(main, ["bench", str(recipe), "--out", str(undisturbed), "--tables-only"])
    assert result.exit_code == 0, result.stderr
    assert f"not measured yet: {more} evaluations of this recipe" in result.stderr


def test_a_method_has_settings_of_its_own(bench_root: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((bench_root / "recipe.toml").read_text() + 'frame_subsampling = 1\nobserver = "minmax"\ngroup_size = "row"\n')
    plan = read_plan(recipe)
    strong, gptq = plan.recipe("strong", 3), plan.recipe("gptq", 3)
    assert (strong.frame_subsampling, strong.format.observer, strong.format.group_size) == (1, "minmax", None)
    assert (gptq.frame_subsampling, gptq.format.observer, gptq.format.group_size) == (3, "mse", 32)
    assert (strong.method.strength, strong.method.algorithm, strong.format.bits, strong.head_bits) == (1.0, "qep", 3, 16)


def test_a_limit_takes_the_first_recordings_of_every_test_set_and_leaves_the_calibration_whole(bench_root: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    gptq = (bench_root / "recipe.toml").read_text().replace('["rtn", "gptq", "strong"]', '["gptq"]').replace("[4, 3]", "[4]")
    recipe.write_text("limit = 2\n" + gptq)
    assert not run_bench(recipe, tmp_path / "out", data=bench_root, threads=1).failed
    first = [utterance.id for utterance in load_data(bench_root / "test")][:2]
    rows = [json.loads(line) for line in (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()]
    assert {tuple(row["utterances"]["ids"]) for row in rows} == {tuple(first)}  # of the original and the quantized models
    calibrations = json.loads((tmp_path / "out" / "bench.json").read_text())["calibrations"]
    assert {calibration["utterances"] for calibration in calibrations} == {read_plan(recipe).utterances}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("bits = [4, 3]", "bits = [7]"), "bits = 7"),
        (("bits = [4, 3]", "bits = []"), "'bits' must be a list"),
        (("bits = [4, 3]", "bitz = [4]"), "'bitz' is not a setting"),
        (('"gptq"', '"gptqq"'), "'gptqq' is not known"),
        (('base = "qep"', 'base = "qeep"'), "'qeep' is not known"),
        (("strength = 1.0", "strength = 9.0"), "out of range"),
        (("strength = 1.0", "power = 9.0"), "power"),
        (("strength = 1.0", "group_size = 48"), "group size 48"),
        (('calibration = "calibration"', ""), "calibrate on speech"),
        (("seeds = [0, 1]", "seeds = [1, 1]"), "names something twice"),
        (("models", "="), "is not TOML"),
        (("utterances = 6", "limit = 0"), "'limit' must be at least 1 recording, got 0"),
        (("utterances = 6", "utterances = -3"), "'utterances' must be at least 1 recording, got -3"),
        (("utterances = 6", "batch_size = 0"), "'batch_size' must be at least 1 recording, got 0"),
        (("utterances = 6", 'language = "auto"'), "'language' must be the code of one language, or left out"),
        (("[method.strong]", "[method.none]"), "a method cannot be called 'none'"),
        (("utterances = 6", 'runtimes = ["torch", "whisper.cpp"]'), "no blocks for '4 bits.*name a target that"),
    ],
)
def test_bad_recipes_are_refused(bench_root: Path, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((bench_root / "recipe.toml").read_text().replace(*change, 1))
    with pytest.raises(RecipeError, match=message):
        read_plan(recipe)
    assert CliRunner().invoke(main, ["bench", str(recipe), "--out", str(tmp_path / "out")]).exit_code == 1
    assert not (tmp_path / "out").exists()
