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
from pathlib import Path

import pytest
from click.testing import CliRunner

from sottovoce.bench import as_csv, as_markdown, read_plan, read_results, run_bench, summarize
from sottovoce.cli.main import main
from sottovoce.errors import RecipeError
from sottovoce.evaluation.wer import score_transcripts

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
    outcome = run_bench(read_plan(bench_root / "recipe.toml"), out, data_root=bench_root, threads=1)
    assert not outcome.failed
    assert len(outcome.computed) == CELLS
    return out


def contents(out: Path) -> dict[str, dict[str, object]]:
    """All results by file name, without their times."""
    return {
        file.name: {key: value for key, value in json.loads(file.read_text()).items() if key != "timing"}
        for file in (out / "cells").glob("*.json")
    }


def test_a_finished_bench_computes_nothing_again(bench_root: Path, undisturbed: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in (undisturbed / "cells").iterdir()}
    outcome = run_bench(read_plan(bench_root / "recipe.toml"), undisturbed, data_root=bench_root, threads=1)
    assert (len(outcome.computed), len(outcome.found)) == (0, CELLS)
    assert before == {file: file.stat().st_mtime_ns for file in (undisturbed / "cells").iterdir()}
    assert not [file for file in (undisturbed / "cache").iterdir() if file.name.startswith("quantize")]


def test_killed_and_started_again_it_ends_the_same(bench_root: Path, undisturbed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sottovoce", "bench", bench_root / "recipe.toml", "--out", tmp_path / "out"]
    moments = random.Random(4)  # noqa: S311 - moments to kill at, no secret
    for _ in range(KILLS):
        process = subprocess.Popen([*map(str, command), "--threads", "1"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        cells = tmp_path / "out" / "cells"
        count = len(list(cells.glob("*.json"))) if cells.is_dir() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if cells.is_dir() and len(list(cells.glob("*.json"))) > count + moments.randrange(4):
                break
            time.sleep(0.01)
        time.sleep(0.3 * moments.random())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run([*map(str, command), "--threads", "1"], capture_output=True, check=False).returncode == 0
    assert contents(tmp_path / "out") == contents(undisturbed)


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
    outcome = run_bench(read_plan(bench_root / "recipe.toml"), tmp_path, data_root=bench_root, jobs=2, threads=1)
    assert not outcome.failed
    assert contents(tmp_path) == contents(undisturbed)


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
    assert {at[3] for at in results} == {"test"}
    assert {at[1] for at in results} == {"none", "rtn", "gptq", "strong"}


def test_the_table_follows_from_the_transcripts(undisturbed: Path) -> None:
    results = read_results(undisturbed)
    rows = {(row.method, row.bits): row for row in summarize(results)}
    (at,) = {(model, data) for model, _, _, data in results}
    original = results[at[0], "none", 16, at[1]][0].transcripts
    runs = results[at[0], "gptq", 3, at[1]]
    scores = [score_transcripts(run.transcripts, original) for run in runs]
    row, rounded = rows["gptq", 3], rows["rtn", 3]
    assert len(runs) == row.seeds == 2
    assert rounded.seeds == 1
    assert row.wer == pytest.approx(statistics.fmean(score.wer for score in scores))
    assert row.deviation == pytest.approx(statistics.stdev(score.wer for score in scores))
    assert row.mean_kl == pytest.approx(statistics.fmean(run.mean_kl for run in runs))
    assert row.gain == pytest.approx((rounded.wer - row.wer) / rounded.wer)
    assert row.calibration_share is None or 0 <= row.calibration_share <= 1
    assert rows["none", 16].mean_kl == 0
    table = list(csv.DictReader(io.StringIO(as_csv(list(rows.values())))))
    assert {line["method"] for line in table} == {"none", "rtn", "gptq", "strong"}
    assert float(next(line for line in table if line["method"] == "rtn" and line["bits"] == "3")["wer"]) == rounded.wer
    assert as_markdown(list(rows.values())).count("| strong |") == 2


def test_of_two_measurements_of_one_thing_the_newest_counts(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "cells", tmp_path / "cells")
    before = read_results(tmp_path)
    old = next(file for file in (tmp_path / "cells").glob("reference-*.json"))
    content = json.loads(old.read_text())
    content["key"]["environment"]["torch"] = "of tomorrow"
    content["result"]["transcripts"][0]["text"] = "newer"
    content["timing"]["finished"] += 1
    new = tmp_path / "cells" / "reference-0000000000000000.json"
    new.write_text(json.dumps(content))
    os.utime(new, (0, 0))  # a checkout gives its files any times
    after = read_results(tmp_path)
    assert {at: len(runs) for at, runs in after.items()} == {at: len(runs) for at, runs in before.items()}
    assert "newer" in {t.text for at, (run, *_) in after.items() if at[1] == "none" for t in run.transcripts}


def test_figures_are_drawn_and_repeat(bench_root: Path, undisturbed: Path) -> None:
    command = ["bench", str(bench_root / "recipe.toml"), "--out", str(undisturbed), "--tables-only"]
    drawn = []
    for _ in range(2):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.stderr
        drawn.append({file.name: file.read_bytes() for file in undisturbed.glob("*.svg")})
    assert drawn[0] == drawn[1]
    assert {name.rsplit("-", 1)[-1] for name in drawn[0]} == {
        "wer.svg",
        "kl.svg",
    }  # no method with strengths by layer here
    assert (undisturbed / "results.md").read_text().startswith("**")


def test_a_method_has_settings_of_its_own(bench_root: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((bench_root / "recipe.toml").read_text() + 'frame_subsampling = 1\nobserver = "minmax"\ngroup_size = "row"\n')
    plan = read_plan(recipe)
    strong, gptq = plan.recipe("strong", 3), plan.recipe("gptq", 3)
    assert (strong.frame_subsampling, strong.format.observer, strong.format.group_size) == (1, "minmax", None)
    assert (gptq.frame_subsampling, gptq.format.observer, gptq.format.group_size) == (3, "mse", 32)
    assert (strong.method.strength, strong.method.algorithm, strong.format.bits, strong.head_bits) == (1.0, "qep", 3, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("bits = [4, 3]", "bits = [5]"), "bits = 5"),
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
    ],
)
def test_bad_recipes_are_refused(bench_root: Path, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text((bench_root / "recipe.toml").read_text().replace(*change, 1))
    with pytest.raises(RecipeError, match=message):
        read_plan(recipe)
    assert CliRunner().invoke(main, ["bench", str(recipe), "--out", str(tmp_path / "out")]).exit_code == 1
    assert not (tmp_path / "out").exists()
