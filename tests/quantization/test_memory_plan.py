"""A limit of memory: the plan that changes least, and a refusal that names the least that will do."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sottovoce import api
from sottovoce.cli.main import main
from sottovoce.errors import MachineError, RecipeError
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization import memory_plan, spill
from sottovoce.quantization.memory_plan import WindowMemory, foresee, measure_window, plan_memory
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.windows import Windows, make_windows
from sottovoce.system.devices import Placement
from tests.conftest import make_tiny, planned
from tests.system.test_devices import SPEECH

MEASURED = WindowMemory(now=100 << 20, live=10 << 20, moment=30 << 20, features=1 << 20)
SHAPES = [(64, 64), (256, 64), (64, 256)]


def apart(model: SpeechModel) -> Windows:
    return make_windows(model, SPEECH, joined=0.0)


def plan_with(limit: int, monkeypatch: pytest.MonkeyPatch, method: str = "fade") -> memory_plan.MemoryPlan:
    monkeypatch.setattr(memory_plan, "measure_window", lambda *_: MEASURED)
    model, recipe = make_tiny(), Recipe(method=METHODS[method])
    return plan_memory(model, planned(model, recipe), recipe.method, apart(model), limit, batch_size=8)


def test_smaller_batches_come_first_then_a_file_then_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [plan_with(mib << 20, monkeypatch) for mib in (1000, 400, 300, 280, 240)]
    assert [(plan.batch_size, plan.spill) for plan in found] == [(8, False), (4, False), (2, False), (1, False), (1, True)]
    assert all(plan.peak_bytes <= mib << 20 for plan, mib in zip(found, (1000, 400, 300, 280, 240), strict=True))
    assert found[-1].file_bytes == 2 * 4 * MEASURED.live
    with pytest.raises(MachineError, match=r"0\.10 GiB of memory are not enough for 4 windows of tiny: 0\.23 GiB are the least") as refusal:
        plan_with(int(0.1 * (1 << 30)), monkeypatch)
    least = float(str(refusal.value).split(": ")[1].split()[0])
    assert plan_with(int(least * (1 << 30)), monkeypatch) == found[-1]  # what the refusal names will do


def test_other_methods_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="leave out --max-memory"):
        plan_with(1 << 40, monkeypatch, "awq")


def test_the_peak_is_the_sum_of_its_parts() -> None:
    found = foresee(MEASURED, SHAPES, 10, networks=2, batch_size=4, spill=False)
    result = 5 * (64 * 64 + 2 * 256 * 64)
    plain = MEASURED.now + memory_plan.LIBRARIES + 10 * MEASURED.features + result + 2 * 10 * MEASURED.live + 4 * MEASURED.moment
    assert found.peak_bytes == int(memory_plan.ROUND * plain)
    spilled = foresee(MEASURED, SHAPES, 10, networks=2, batch_size=4, spill=True)
    assert found.peak_bytes - spilled.peak_bytes == pytest.approx(memory_plan.ROUND * (2 * 10 - 2 * 2 * 4) * MEASURED.live, abs=2)
    wide = foresee(replace(MEASURED, moment=0), [(64, 4096)], 1, networks=1, batch_size=1, spill=False)
    assert wide.peak_bytes > memory_plan.solving_bytes([(64, 4096)])


def test_one_window_tells_what_a_pass_holds() -> None:
    model = make_tiny()
    found = measure_window(model, planned(model, Recipe()), apart(model))
    # 100 positions of 64 numbers: at the second layer of a feed-forward block the residual stream and its inputs of twice the width,
    # and while attention is paused queries, keys and values beside the residual stream and their inputs.
    assert 3 * 100 * 64 * 4 <= found.live <= 12 * 100 * 64 * 4
    assert 16 * 200 * 4 <= found.features <= 16 * 200 * 4 + 100  # and the decoder's tokens
    assert found.moment >= found.live // 2


def test_quantizing_within_a_limit_gives_the_same_bytes(
    model_folder: Path, speech_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "LEAST_BYTES", 1024)
    options = {"calibration": speech_folder, "batch_size": 1, "utterances": 6}
    api.quantize(model_folder, tmp_path / "plain", **options)  # type: ignore[arg-type]
    real = memory_plan.foresee
    monkeypatch.setattr(memory_plan, "foresee", lambda *a, **k: replace(real(*a, **k), peak_bytes=2 - k["spill"]))
    api.quantize(model_folder, tmp_path / "spilled", max_memory=1, **options)  # type: ignore[arg-type]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "spilled")]
    assert files[0] == files[1]


def test_a_system_that_tells_no_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sottovoce.api.quantization.tells_memory", lambda: False)
    with pytest.raises(MachineError, match="a limit of memory needs Linux"):
        api.quantize(tmp_path / "no model", tmp_path / "out", calibration=tmp_path, max_memory=1 << 30)


def test_bad_limits_are_refused(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave out --max-memory or --device"):
        api.quantize(model_folder, tmp_path / "out", max_memory=1 << 30, placement=Placement(device=torch.device("meta")))
    command = ["quantize", str(model_folder), str(tmp_path / "out"), "--calibration", str(speech_folder), "--max-memory"]
    done = CliRunner().invoke(main, [*command, "lots"])
    assert done.exit_code == 2
    assert "'lots' is not a size" in done.stderr
    done = CliRunner().invoke(main, [*command, "10MiB"])
    assert done.exit_code == 1
    assert "are the least; give that to --max-memory, or fewer --utterances" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_costliest_layer_is_not_always_the_widest() -> None:
    """31 matrices `[in, in]` in float64 and 24 `[out, in]` in float32."""
    assert memory_plan.solving_bytes([(64, 100), (4000, 64)]) == 8 * 31 * 64**2 + 4 * 24 * 4000 * 64
    assert memory_plan.solving_bytes([(64, 100), (70, 64)]) == 8 * 31 * 100**2 + 4 * 24 * 64 * 100


def test_with_a_file_no_more_windows_are_live_than_there_are() -> None:
    """The costs of solving are next to nothing here, so a pass is what takes most; without a file all windows stay."""
    few = foresee(MEASURED, SHAPES, 3, networks=2, batch_size=8, spill=True)
    parts = MEASURED.now + (48 << 20) + 3 * MEASURED.features + 5 * (64 * 64 + 2 * 256 * 64)
    live = 2 * 3 * MEASURED.live
    assert few.peak_bytes == int(1.02 * (parts + live + live + 8 * MEASURED.moment))
    assert (few.file_bytes, few.batch_size, few.spill) == (live, 8, True)
    assert foresee(MEASURED, SHAPES, 3, networks=2, batch_size=8, spill=False).file_bytes == 0
    wide = [(64, 2048)]
    solving = memory_plan.solving_bytes(wide)
    for spill_too, most in ((False, max(MEASURED.moment, solving)), (True, max(MEASURED.live + MEASURED.moment, solving))):
        found = foresee(MEASURED, wide, 1, networks=1, batch_size=1, spill=spill_too)
        rest = MEASURED.now + (48 << 20) + MEASURED.features + 5 * 64 * 2048 + MEASURED.live
        assert found.peak_bytes == int(1.02 * (rest + most))


def test_processes_share_the_windows_and_a_limit_may_be_met_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "measure_window", lambda *_: MEASURED)
    model, recipe = make_tiny(), Recipe()
    plan = planned(model, recipe)

    def found(limit: int, processes: int, batch_size: int = 6) -> memory_plan.MemoryPlan:
        return plan_memory(model, plan, recipe.method, apart(model), limit, batch_size=batch_size, processes=processes)

    shapes = [layer.shape for layer in plan.layers]
    for processes, count in ((1, 4), (2, 2), (3, 2), (4, 1)):
        least = foresee(MEASURED, shapes, count, networks=2, batch_size=6, spill=False)
        assert found(least.peak_bytes, processes) == least
        assert found(least.peak_bytes - 1, processes) == foresee(MEASURED, shapes, count, networks=2, batch_size=3, spill=False)
