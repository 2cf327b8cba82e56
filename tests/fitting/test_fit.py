"""A fit from beginning to end on a tiny model."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sottovoce import api
from sottovoce.backends.registry import BACKENDS
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.errors import CalibrationError, RecipeError
from sottovoce.fitting.run import Fit, FitSettings
from sottovoce.fitting.size import file_bytes, parse_size
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.fit_record import FitGoal
from sottovoce.quantization.plan_file import read_plan, write_plan
from sottovoce.quantization.schedule import plan_of


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products gain nothing from more, and a busy machine makes them wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fitted(model: Whisper, out: Path, speech: Path, **settings: object) -> api.FitResult:
    given = {"target": "transcribe.cpp", "utterances": 6, "held_out": 2, "verify": False, "swaps": 4, "batch_size": 4}
    return api.fit(model, out, calibration=speech, **(given | settings))  # type: ignore[arg-type]


def sizes(model: Whisper, name: str = "transcribe.cpp") -> tuple[int, int]:
    """The smallest and the largest file."""
    fit = Fit(model, BACKENDS[name], FitGoal(max_kl=1.0), FitSettings())
    return (
        fit.fixed_bytes + sum(min(unit.bytes) for unit in fit.units),
        fit.fixed_bytes + sum(max(unit.bytes) for unit in fit.units),
    )


def test_the_file_fits_and_is_what_the_record_says(tiny: Whisper, speech_folder: Path, tmp_path: Path) -> None:
    least, most = sizes(tiny)
    limit = least + (most - least) // 4
    done = fitted(tiny, tmp_path / "out", speech_folder, max_size=limit)
    record = done.record
    assert done.file == tmp_path / "out.gguf"
    assert record.bytes == done.file.stat().st_size <= limit
    assert record.bytes == record.fixed_bytes + sum(unit.bytes for unit in record.units)
    assert record.bytes > 0.97 * limit
    stored = api.inspect(tmp_path / "out")
    assert stored.fit == record
    assert [layer.name for layer in stored.plan.layers] + list(stored.plan.ignored)
    assert api.verify(tmp_path / "out").layers == len(stored.plan.layers)
    # It is a mixture, and the head is in it like any other unit.
    assert len({unit.format for unit in record.units}) > 1
    assert any(unit.name == tiny.embedding for unit in record.units)
    assert record.predicted_kl > 0
    assert record.measured_kl > 0
    assert record.uniform is not None
    assert record.uniform.bytes <= limit
    assert record.ideal_kl <= record.predicted_kl * 1.2
    assert record.passes.calibration % (2 * len(stored.calibration.utterances)) == 0
    assert record.passes.calibration > 0
    # What was measured is what was written.
    loaded = api.load(tmp_path / "out")
    for layer in stored.plan.layers:
        torch.testing.assert_close(loaded.module(layer.name).weight, done.quantized.model.module(layer.name).weight)


def test_more_room_is_not_predicted_worse(tiny: Whisper, speech_folder: Path, tmp_path: Path) -> None:
    least, most = sizes(tiny)
    small = fitted(tiny, tmp_path / "a", speech_folder, max_size=least, swaps=0).record
    large = fitted(tiny, tmp_path / "b", speech_folder, max_size=least + (most - least) // 2, swaps=0).record
    assert large.measured_kl < small.measured_kl


def test_same_inputs_same_bytes(tiny: Whisper, speech_folder: Path, tmp_path: Path) -> None:
    least, most = sizes(tiny)
    for name in "ab":
        fitted(tiny, tmp_path / name, speech_folder, max_size=least + (most - least) // 3)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("stop_at", ["measuring units", "trying swaps"])
def test_a_stopped_fit_goes_on_to_the_same_bytes(tiny: Whisper, speech_folder: Path, tmp_path: Path, stop_at: str) -> None:
    least, most = sizes(tiny)
    limit = least + (most - least) // 3

    def stop(doing: str, done: int, _total: int) -> None:
        if doing == stop_at and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(tiny, tmp_path / "stopped", speech_folder, max_size=limit, progress=stop)
    assert not (tmp_path / "stopped").exists()
    layers = list[str]()
    fitted(tiny, tmp_path / "stopped", speech_folder, max_size=limit, resume=True, progress=lambda doing, *_: layers.append(doing))
    assert "transcribing calibration speech" not in layers
    fitted(tiny, tmp_path / "whole", speech_folder, max_size=limit)
    assert (tmp_path / "stopped.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_bound_on_the_kl(tiny: Whisper, speech_folder: Path, tmp_path: Path) -> None:
    loose = fitted(tiny, tmp_path / "loose", speech_folder, max_kl=1.0, swaps=0).record
    tight = fitted(tiny, tmp_path / "tight", speech_folder, max_kl=0.02, swaps=0).record
    assert tight.bytes > loose.bytes
    assert tight.measured_kl < loose.measured_kl


def test_too_small_a_size_names_the_smallest_and_the_unit(tiny: Whisper, speech_folder: Path, tmp_path: Path) -> None:
    least, _ = sizes(tiny)
    with pytest.raises(RecipeError, match=rf"smallest file takes {least / 1e6:.2f} MB, of which {tiny.embedding} takes"):
        fitted(tiny, tmp_path / "out", speech_folder, max_size=least - 1)
    assert not (tmp_path / "out").exists()


def test_refusals(tiny: Whisper, speech_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="either a size or"):
        fitted(tiny, tmp_path / "out", speech_folder)
    with pytest.raises(CalibrationError, match="held out to measure on, and 0 of other speakers"):
        fitted(tiny, tmp_path / "out", speech_folder, max_kl=1.0, held_out=4)
    for text in ("30 parsecs", "-3MB", "0", "nan"):
        with pytest.raises(RecipeError):
            parse_size(text)
    assert parse_size("30MB") == 30_000_000
    assert parse_size("1.5 MiB") == 1_572_864


@pytest.mark.parametrize("name", ["transcribe.cpp", "whisper.cpp", "compressed-tensors"])
def test_bytes_of_the_file_are_the_sum_of_its_parts(tiny: Whisper, name: str) -> None:
    """What no schedule changes is the same for the smallest and for the largest plan, but for names in the header."""
    if name == "whisper.cpp":
        pytest.skip("whisper.cpp wants OpenAI's vocabulary, which the tiny model does not have")
    fit = Fit(tiny, BACKENDS[name], FitGoal(max_kl=1.0), FitSettings())
    largest = tuple(len(unit.menu) - 2 for unit in fit.units)
    plan = plan_of(fit.units, largest, tiny, BACKENDS[name].target)
    parts = fit.fixed_bytes + sum(unit.bytes[entry] for unit, entry in zip(fit.units, largest, strict=True))
    assert file_bytes(tiny, plan, BACKENDS[name]) == pytest.approx(parts, abs=0 if name == "transcribe.cpp" else 8000)


def test_the_plan_can_be_given_to_quantize(tiny: Whisper, speech_folder: Path, tmp_path: Path) -> None:
    least, most = sizes(tiny)
    done = fitted(tiny, tmp_path / "out", speech_folder, max_size=least + (most - least) // 3)
    write_plan(tmp_path / "plan.json", done.quantized.plan)
    again = api.quantize(tiny, tmp_path / "again", plan=read_plan(tmp_path / "plan.json"), calibration=speech_folder, utterances=6)
    assert again.plan == done.quantized.plan


def test_baselines(tiny: Whisper, speech_folder: Path, tmp_path: Path) -> None:
    least, most = sizes(tiny)
    record = fitted(tiny, tmp_path / "out", speech_folder, max_size=least + (most - least) // 4, swaps=0, baselines=True).record
    assert record.random.draws == 20
    assert record.random.measured_kl is not None
    assert math.isfinite(record.random.measured_kl)
    assert record.predicted_kl <= record.random.predicted_kl
    assert replace(record.random, measured_kl=None).bytes <= least + (most - least) // 4
