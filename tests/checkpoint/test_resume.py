"""Stopped quantizations go on to the same bytes; two at once, a full disk and damaged leftovers do no harm."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce import api
from sottovoce.checkpoint.resume import StoredRun, exclusive_run
from sottovoce.core.affine import Affine
from sottovoce.errors import CalibrationError, ExportError, MachineError, MissingDependencyError, OutputError, SottovoceError
from sottovoce.quantization.recipe import Recipe
from tests.forked import Forked

KILLS = int(os.environ.get("SOTTOVOCE_KILLS", "3"))
RECIPE = Recipe(format=Affine(bits=3, group_size=32))
LAYERS = 2 * 6 + 2 * 10 + 1  # of the tiny model
# Quantizes; kills itself where the last argument, a number of finished layers, says so.
SCRIPT = """
import os, signal, sys
import torch
from sottovoce import api
from sottovoce.core.affine import Affine
from sottovoce.quantization.recipe import Recipe

model, speech, out, resume, at = sys.argv[1:]
torch.set_num_threads(1)
def progress(kind, done, total, detail=""):
    print(detail or kind, done, flush=True)
    if detail and done == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
api.quantize(model, out, recipe=Recipe(format=Affine(bits=3, group_size=32)), calibration=speech, resume=resume == "resume",
             batch_size=2, progress=progress)
"""


@pytest.fixture
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


def start(model: Path, speech: Path, out: Path, logs: Path, *, resume: bool, at: int = -1) -> Forked:
    return Forked([model, speech, out, "resume" if resume else "anew", at], logs, SCRIPT)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, speech_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole") / "out"
    code, _, errors = start(model_folder, speech_folder, out, tmp_path_factory.mktemp("logs"), resume=False).finish()
    assert code == 0, errors
    assert [path.name for path in out.parent.iterdir()] == ["out"]  # nothing is left beside it
    return contents(out)


@pytest.mark.parametrize("at", [1, 20, LAYERS - 1] if KILLS < 50 else range(1, LAYERS))
def test_killed_at_a_layers_border(
    at: int, model_folder: Path, speech_folder: Path, tmp_path: Path, logs: Path, undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "out"
    killed = start(model_folder, speech_folder, out, logs, resume=False, at=at).finish()
    assert killed[0] == -signal.SIGKILL
    assert not out.exists()
    assert len(list((tmp_path / ".out.unfinished").glob("layer-*"))) == at
    code, printed, errors = start(model_folder, speech_folder, out, logs, resume=True).finish()
    assert code == 0, errors
    assert "transcribing" not in printed  # what is known is not made again
    assert len([line for line in printed.splitlines() if line.startswith(("model.", "proj_out"))]) == LAYERS - at
    assert contents(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.timeout(600 + 60 * KILLS)
def test_killed_at_random_moments(
    model_folder: Path,
    speech_folder: Path,
    tmp_path: Path,
    logs: Path,
    undisturbed: dict[str, str],
    record_property: Callable[[str, object], None],
) -> None:
    moments = random.Random(5)  # noqa: S311 - moments to kill at, no secret
    for trial in range(KILLS):
        out = tmp_path / str(trial) / "out"
        with start(model_folder, speech_folder, out, logs, resume=True) as process:
            process.wait_for_print()  # it has begun
            time.sleep(1.2 * moments.random())
        code, _, errors = start(model_folder, speech_folder, out, logs, resume=True).finish()
        assert code == 0 or "exists already" in errors, errors  # unless it had finished before it was killed
        assert contents(out) == undisturbed
    record_property("kills", KILLS)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_asked_to_stop_it_says_how_to_go_on(
    name: str, code: int, model_folder: Path, speech_folder: Path, tmp_path: Path, logs: Path
) -> None:
    command = ["quantize", model_folder, tmp_path / "out", "--group-size", "32", "--calibration", speech_folder, "--batch-size", "1"]
    command += ["--threads", "1", "--frame-subsampling", "1"]
    unfinished = tmp_path / ".out.unfinished"
    for _ in range(5):  # on a busy machine it may be done before it is asked
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        process = Forked(command, logs)
        deadline = time.monotonic() + 60
        while len(list(unfinished.glob("layer-*"))) < 2 and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send(getattr(signal, name))
        ended, _, errors = process.finish()
        if ended != 0:
            break
    assert ended == code, errors
    assert "--resume continues" in errors
    assert list(unfinished.glob("layer-*"))
    ended, _, errors = Forked(command, logs).finish()
    assert ended == 1
    assert "--resume continues it, --overwrite starts again" in errors
    assert Forked([*command, "--resume"], logs).finish()[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_inputs_are_not_mixed_in(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    stop_after(2, model_folder, speech_folder, tmp_path / "out")
    with pytest.raises(OutputError, match="differs in calibration, seed"):
        api.quantize(model_folder, tmp_path / "out", recipe=RECIPE, calibration=speech_folder, seed=1, resume=True)
    with pytest.raises(OutputError, match="2 layers finished"):
        api.quantize(model_folder, tmp_path / "out", recipe=RECIPE, calibration=speech_folder)
    api.quantize(model_folder, tmp_path / "out", recipe=RECIPE, calibration=speech_folder, seed=1, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_damaged_layer_is_solved_again(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    whole = api.quantize(model_folder, tmp_path / "whole", recipe=RECIPE, calibration=speech_folder)
    stop_after(4, model_folder, speech_folder, tmp_path / "out")
    stored = sorted((tmp_path / ".out.unfinished").glob("layer-*"))[2]
    raw = bytearray(stored.read_bytes())
    raw[-3] ^= 1
    stored.write_bytes(raw)
    with (tmp_path / ".out.unfinished" / "transcripts.jsonl").open("a") as file:
        file.write('["u3", [1, 2')  # stopped in the middle of a line
    again = api.quantize(model_folder, tmp_path / "out", recipe=RECIPE, calibration=speech_folder, resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert again.reports == whole.reports


def stop_after(layers: int, model: Path, speech: Path, out: Path) -> None:
    def progress(kind: str, done: int, _total: int, _detail: str = "") -> None:
        if kind == "layers" and done == layers:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.quantize(model, out, recipe=RECIPE, calibration=speech, progress=progress)


def test_two_at_once_are_refused(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    with (
        exclusive_run(tmp_path / "out", resume=False, overwrite=False),
        pytest.raises(OutputError, match="another process is writing it"),
    ):
        api.quantize(model_folder, tmp_path / "out", recipe=RECIPE, calibration=speech_folder)
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_leaves_nothing(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    def progress(kind: str, done: int, _total: int, _detail: str = "") -> None:
        if kind == "layers" and done == 3:
            raise CalibrationError("as if its inputs were not finite")

    with pytest.raises(CalibrationError):
        api.quantize(model_folder, tmp_path / "out", recipe=RECIPE, calibration=speech_folder, progress=progress)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind_of_error", [MachineError, MissingDependencyError, ExportError])
def test_what_may_go_well_later_keeps_the_layers(
    kind_of_error: type[SottovoceError], model_folder: Path, speech_folder: Path, tmp_path: Path
) -> None:
    def progress(kind: str, done: int, _total: int, _detail: str = "") -> None:
        if kind == "layers" and done == 3:
            raise kind_of_error("not now")

    with pytest.raises(kind_of_error):
        api.quantize(model_folder, tmp_path / "out", recipe=RECIPE, calibration=speech_folder, progress=progress)
    assert len(list((tmp_path / ".out.unfinished").glob("layer-*.safetensors"))) == 3
    api.quantize(model_folder, tmp_path / "out", recipe=RECIPE, calibration=speech_folder, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_line_that_was_cut_off_does_not_hide_those_after_it(tmp_path: Path) -> None:
    """In the run's own files and in those of its stages."""

    def torn(number: int) -> None:
        with exclusive_run(tmp_path / "out", resume=number > 0, overwrite=False) as state:
            state.begin({"model": "m"}, resume=number > 0)
            state.add_transcripts({f"u{number}": [number]})
            state.stage("one").add_value("prices", number)
            for file in state.folder.rglob("*.jsonl"):
                with file.open("a") as handle:
                    handle.write('["torn')
            raise KeyboardInterrupt

    for number in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            torn(number)
    state = StoredRun(tmp_path / "out")
    assert state.transcripts() == {"u0": (0,), "u1": (1,)}
    assert state.stage("one").values("prices") == [0, 1]


FULL = """
import resource, sys
from sottovoce import api
from sottovoce.core.affine import Affine
from sottovoce.errors import OutputError
from sottovoce.quantization.recipe import Recipe
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model, speech, out, most = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
try:
    api.quantize(model, out, recipe=Recipe(format=Affine(bits=3, group_size=32)), calibration=speech,
                 batch_size=2, resume=True, overwrite=True)
except OutputError as exc:
    print(exc)
    sys.exit(7)
"""


@pytest.mark.parametrize("most", [100, 12000, 40000] if KILLS >= 50 else [12000])
def test_a_full_disk_is_an_error_and_costs_nothing(most: int, model_folder: Path, speech_folder: Path, tmp_path: Path, logs: Path) -> None:
    """Simulated by a limit on the size of files: transcripts, a layer, the output itself do not fit."""
    out = tmp_path / "out"
    api.quantize(model_folder, out, recipe=Recipe(method=RECIPE.method, format=Affine(bits=4, group_size=32)), calibration=speech_folder)
    before = contents(out)
    code, printed, errors = Forked([model_folder, speech_folder, out, most], logs, FULL).finish()
    assert code == 7, errors
    assert "writing failed" in printed
    assert contents(out) == before
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    assert Forked([model_folder, speech_folder, out, no_limit], logs, FULL).finish()[0] == 0
    assert json.loads((out / "sottovoce.json").read_text())["recipe"]["format"]["bits"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
