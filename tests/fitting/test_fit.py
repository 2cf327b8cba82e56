"""A fit from beginning to end on a tiny model."""

import json
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sottovoce import api
from sottovoce.backends.registry import BACKENDS
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.checkpoint.resume import StoredRun
from sottovoce.cli.main import main
from sottovoce.core.number_format import NumberFormat
from sottovoce.data.dataset import DataSet
from sottovoce.data.load import load_data
from sottovoce.errors import CalibrationError, ModelError, RecipeError
from sottovoce.fitting.attempt import Attempt
from sottovoce.fitting.baselines import hand_entries
from sottovoce.fitting.loop_guard import longest, new_loops, without_costliest
from sottovoce.fitting.measuring import Measuring
from sottovoce.fitting.passes import Passes
from sottovoce.fitting.run import Fit, FitSettings
from sottovoce.fitting.size import file_bytes, parse_size
from sottovoce.fitting.speech import held_out_speech
from sottovoce.fitting.swaps import Swap, propose_swaps, try_swaps
from sottovoce.fitting.word_goal import ENOUGH, WordGoal
from sottovoce.models.speech_model import SpeechModel
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.calibration_set import CalibrationSpeech
from sottovoce.quantization.fit_record import FitGoal, WordIncrease
from sottovoce.quantization.layer import LayerResult
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.plan_file import read_plan, write_plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.schedule import PricedUnit, bytes_of, cheapest_loss, plan_of, schedule_of
from sottovoce.system.progress import Progress, silent
from tests.conftest import make_tiny


def priced(fit: Fit) -> list[PricedUnit]:
    """Units whose loss falls with their size."""
    return [
        PricedUnit(unit=unit, errors=tuple(4.0 ** (-8 * size / unit.weights) for size in unit.bytes), base=0, base_loss=1.0 + i)
        for i, unit in enumerate(fit.units)
    ]


def fitted(out: Path, speech: Path, **settings: object) -> api.FitResult:
    given = {
        "target": "transcribe.cpp",
        "utterances": 6,
        "held_out": 2,
        "verify": False,
        "swaps": 3,
        "recipe": Recipe(method=METHODS["gptq"]),
    }
    with torch.no_grad():
        return api.fit(make_tiny(layers=1), out, calibration=speech, **(given | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sizes() -> tuple[int, int]:
    """The smallest and the largest file."""
    fit = Fit(make_tiny(layers=1), BACKENDS["transcribe.cpp"], FitGoal(max_kl=1.0), FitSettings())
    return (
        fit.fixed_bytes + sum(min(unit.bytes) for unit in fit.units),
        fit.fixed_bytes + sum(max(unit.bytes) for unit in fit.units),
    )


@pytest.fixture(scope="module")
def limit(sizes: tuple[int, int]) -> int:
    return sizes[0] + (sizes[1] - sizes[0]) // 3


@pytest.fixture(scope="module")
def done(speech_folder: Path, tmp_path_factory: pytest.TempPathFactory, limit: int) -> api.FitResult:
    return fitted(tmp_path_factory.mktemp("fit") / "out", speech_folder, max_size=limit, baselines=True)


def test_the_file_fits_and_is_what_the_record_says(done: api.FitResult, limit: int) -> None:
    record, folder = done.record, done.file.with_suffix("")
    assert record.bytes == done.file.stat().st_size <= limit
    assert record.bytes == record.fixed_bytes + sum(unit.bytes for unit in record.units)
    assert record.bytes > 0.97 * limit
    stored = api.inspect(folder)
    assert stored.fit == record
    origin = BACKENDS["transcribe.cpp"].origin
    assert origin is not None
    assert origin(done.file) == stored.files["model.safetensors"].sha256  # though the file was written before the folder
    assert stored.calibration is not None
    assert len(stored.chosen_on) == 2 * 2  # `certify` refuses what formats and swaps were chosen by
    assert not set(stored.chosen_on) & set(stored.calibration.recordings)
    assert api.verify(folder).layers == len(stored.plan.layers)
    # It is a mixture, and the head is in it like any other unit.
    assert len({unit.format for unit in record.units}) > 1
    assert any(unit.name == "model.decoder.embed_tokens" for unit in record.units)
    assert record.predicted_kl > 0
    assert record.measured_kl > 0
    assert record.passes.calibration % len(stored.calibration.utterances) == 0
    # What was measured is what was written.
    loaded = api.load(folder)
    for name, parameter in done.quantized.model.network.named_parameters():
        torch.testing.assert_close(loaded.network.get_parameter(name), parameter)


def test_the_baselines(done: api.FitResult, limit: int) -> None:
    record = done.record
    assert record.uniform is not None
    assert record.uniform.bytes <= limit
    assert record.uniform.measured_kl is not None
    assert record.predicted_kl <= record.uniform.predicted_kl
    assert record.random.draws == 20
    assert record.random.measured_kl is not None
    assert record.random.bytes <= limit
    assert record.predicted_kl <= record.random.predicted_kl
    assert record.ideal_kl > 0
    assert [one.title for one in record.others] == ["8 bits in the encoder, one format elsewhere", "plain sensitivities"]
    for one in record.others:
        assert one.bytes <= limit
        assert one.measured_kl is not None
    assert len(record.baselines) == 4


def test_sensitivities_are_measured_on_the_operating_point(
    speech_folder: Path, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random schedules were in the same model before, and are out of it again."""
    seen, real = list[bool](), Measuring.sensitivities

    def looked_at(measuring: Measuring, attempt: Attempt) -> dict[str, float]:
        model, weights = attempt.result.model, attempt.result.weights
        seen.extend(torch.equal(model.module(name).weight, weight.dequantize()) for name, weight in weights.items())
        return real(measuring, attempt)

    monkeypatch.setattr(Measuring, "sensitivities", looked_at)
    record = fitted(tmp_path / "out", speech_folder, max_size=limit, baselines=True, swaps=0, guarded=0).record
    assert len(seen) == 17
    assert all(seen)
    assert all(record.predicted_kl <= other.predicted_kl for other in record.baselines)  # without swaps it is the best by its own prices
    alone = fitted(tmp_path / "alone", speech_folder, max_size=limit, swaps=0, guarded=0).record
    assert replace(alone, random=record.random, others=record.others) == record  # its cost, too: baselines are no part of a fit


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 1.0])
def test_the_schedule_by_hand_is_the_largest_that_fits(share: float) -> None:
    units = Fit(make_tiny(layers=1), BACKENDS["transcribe.cpp"], FitGoal(max_kl=1.0), FitSettings()).units
    least, most = (sum(choose(unit.bytes) for unit in units) for choose in (min, max))
    room = least + round(share * (most - least))
    in_encoder = [unit.layers[0].part == "encoder" for unit in units]
    eight = sum(
        next(s for s, f in zip(u.bytes, u.menu, strict=True) if f and f.code_bits == 8) for u, e in zip(units, in_encoder, strict=True) if e
    )
    rest = [unit for unit, encoder in zip(units, in_encoder, strict=True) if not encoder]
    titles = {f.title for unit in rest for f in unit.menu if f}
    wholes = []  # bytes of one format for all others, where every one can have it
    for title in titles:
        sizes = [[s for s, f in zip(unit.bytes, unit.menu, strict=True) if f and f.title == title] for unit in rest]
        if all(sizes):
            wholes.append(eight + sum(size[0] for size in sizes))
    fitting = [size for size in wholes if size <= room]
    found = hand_entries(units, room)
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert bytes_of(units, found) == max(fitting)
    assert {unit.menu[k].code_bits for unit, k, encoder in zip(units, found, in_encoder, strict=True) if encoder} == {8}  # type: ignore[union-attr]


def test_the_plan_can_be_given_to_quantize(done: api.FitResult, tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", done.quantized.plan)
    plan = read_plan(tmp_path / "plan.json")
    again = api.quantize(make_tiny(layers=1), tmp_path / "again", plan=plan, recipe=Recipe(method=METHODS["rtn"]))
    assert again.plan == done.quantized.plan
    assert api.export(again, "transcribe.cpp", tmp_path / "again.gguf", verify=False).bytes == done.record.bytes


@pytest.mark.parametrize("stop_at", ["measuring units", "trying swaps"])
def test_a_stopped_fit_goes_on_to_the_same_bytes(
    done: api.FitResult, speech_folder: Path, tmp_path: Path, limit: int, stop_at: str
) -> None:
    def stop(kind: str, *_: object) -> None:
        if kind == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "out", speech_folder, max_size=limit, baselines=True, progress=stop)
    assert not (tmp_path / "out").exists()
    seen = list[str]()
    fitted(tmp_path / "out", speech_folder, max_size=limit, baselines=True, resume=True, progress=lambda kind, *_: seen.append(kind))
    assert "transcribing calibration speech" not in seen
    assert (tmp_path / "out.gguf").read_bytes() == done.file.read_bytes()


def test_a_bound_on_the_kl(done: api.FitResult, speech_folder: Path, tmp_path: Path) -> None:
    """A tenth of the KL takes a larger file."""
    tight = fitted(tmp_path / "tight", speech_folder, max_kl=done.record.predicted_kl / 10, swaps=0).record
    assert tight.bytes > done.record.bytes
    assert tight.measured_kl < done.record.measured_kl


def test_a_bound_on_the_word_error_rate(speech_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest schedule tried that keeps the bound is taken, and the outcome is counted on the fold that no choice has seen."""
    tried, real = list[tuple[int, float]](), WordGoal.increase

    def rising(goal: WordGoal, model: SpeechModel, data: DataSet, progress: Progress) -> WordIncrease:
        """As if each nat cost 100 words in 100: the words of a random model tell nothing."""
        seen = held_out_speech(goal_model, data, language=None, progress=progress).mean_divergence(model)
        tried.append((len(data), 100 * seen))
        return replace(real(goal, model, data, progress), points=100 * seen)

    goal_model = make_tiny(layers=1)
    monkeypatch.setattr(WordGoal, "increase", rising)
    record = fitted(tmp_path / "out", speech_folder, max_wer_increase=0.5, swaps=0, guarded=0).record
    assert record.words is not None
    assert [count for count, _ in tried] == [4] * (len(tried) - 1) + [2]
    kept = [points for _, points in tried[:-1] if points <= 0.5]
    assert kept
    assert record.words.utterances == 2
    assert record.words.points == tried[-1][1]
    assert read_manifest(tmp_path / "out").fit == replace(record, bytes=record.bytes)


def test_the_next_bound_follows_the_words() -> None:
    goal = WordGoal(points=1.0, choice=DataSet("a", ()), report=DataSet("b", ()), original={})
    assert goal.next_bound(0.1, 0.1, 0.8) is None
    assert goal.next_bound(0.1, 0.1, 2.0) == pytest.approx(0.1 * 0.5 * ENOUGH)
    assert goal.next_bound(0.1, 0.02, 2.0) == pytest.approx(0.02 * 0.5 * ENOUGH)
    assert goal.next_bound(0.1, 0.1, 0.5) == pytest.approx(0.2)
    assert goal.next_bound(0.1, 0.02, 0.5) == pytest.approx(0.2)
    assert goal.next_bound(0.1, 0.1, -1.0) == pytest.approx(0.4)
    assert goal.next_bound(0.1, 0.1, 100.0) == pytest.approx(0.025)


def test_words_cannot_be_counted(speech_folder: Path, tmp_path: Path) -> None:
    silent_texts = load_data(speech_folder)
    unlabelled = replace(silent_texts, utterances=tuple(replace(one, text=None) for one in silent_texts))
    with pytest.raises(RecipeError, match="have no reference text"):
        fitted(tmp_path / "out", unlabelled, max_wer_increase=1.0)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="of -1 is not possible"):
        fitted(tmp_path / "out", speech_folder, max_wer_increase=-1)


def test_too_small_a_size_names_the_smallest_and_the_unit(speech_folder: Path, tmp_path: Path, sizes: tuple[int, int]) -> None:
    with pytest.raises(RecipeError, match=rf"smallest file takes {sizes[0] / 1e6:.2f} MB, of which model.decoder.embed_tokens takes"):
        fitted(tmp_path / "out", speech_folder, max_size=sizes[0] - 1)
    assert not (tmp_path / "out").exists()


def test_refusals(speech_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="either a size, a bound"):
        fitted(tmp_path / "out", speech_folder)
    with pytest.raises(RecipeError, match="goes layer by layer"):
        fitted(tmp_path / "out", speech_folder, max_kl=1.0, recipe=Recipe(method=METHODS["rtn"]))
    with pytest.raises(CalibrationError, match="held out to measure on, and 0 of other speakers"):
        fitted(tmp_path / "out", speech_folder, max_kl=1.0, held_out=4)
    for text in ("30 parsecs", "-3MB", "0", "nan"):
        with pytest.raises(RecipeError):
            parse_size(text)
    assert parse_size("30MB") == 30_000_000
    assert parse_size("1.5 MiB") == 1_572_864


@pytest.mark.parametrize(("name", "names_in_headers"), [("transcribe.cpp", 0), ("compressed-tensors", 8000)])
def test_bytes_of_the_file_are_the_sum_of_its_parts(name: str, names_in_headers: int) -> None:
    model: Whisper = make_tiny(layers=1)
    fit = Fit(model, BACKENDS[name], FitGoal(max_kl=1.0), FitSettings())
    largest = tuple(len(unit.menu) - 2 for unit in fit.units)
    parts = fit.fixed_bytes + sum(unit.bytes[entry] for unit, entry in zip(fit.units, largest, strict=True))
    real = file_bytes(model, plan_of(fit.units, largest, model, BACKENDS[name].target), BACKENDS[name])
    assert abs(real - parts) <= names_in_headers


def test_errors_of_a_folder(done: api.FitResult, speech_folder: Path) -> None:
    """By Python and by the command; half the sum is near the KL."""
    found = api.inspect_errors(done.file.with_suffix(""), speech_folder, against=make_tiny(layers=1), limit=4)
    assert found.predicted_kl == pytest.approx(found.measured_kl, rel=0.35)
    assert len(found.units) == len(done.quantized.plan.layers) + 1


def test_the_command(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    """Fit, show it again, and show how its errors add up."""
    out, few = tmp_path / "out", ("--utterances", "4", "--held-out", "2", "--swaps", "0", "--method", "gptq", "--no-verify")
    where = ("--target", "gguf", "--calibration", str(speech_folder), "--threads", "1")
    done = CliRunner().invoke(main, ["fit", str(model_folder), str(out), "--max-size", "0.4MB", *where, *few, "--json"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["bytes"] == (tmp_path / "out.gguf").stat().st_size <= 400_000
    assert "reverse water-filling (real bits" in CliRunner().invoke(main, ["inspect", str(out)]).stdout
    errors = CliRunner().invoke(main, ["inspect", str(out), "--errors", str(speech_folder), "--utterances", "2", "--threads", "1"])
    assert errors.exit_code == 0, errors.output
    assert "off-diagonal share" in errors.stdout
    small = CliRunner().invoke(main, ["fit", str(model_folder), str(tmp_path / "no"), "--max-size", "1KB", *where, *few])
    assert small.exit_code == 1
    assert "smallest file takes" in small.stderr
    assert CliRunner().invoke(main, ["fit", str(model_folder), str(tmp_path / "no"), *where]).exit_code == 2


def test_a_unit_may_not_become_smaller_than_it_must(sizes: tuple[int, int]) -> None:
    fit = Fit(make_tiny(layers=1), BACKENDS["transcribe.cpp"], FitGoal(max_kl=1.0), FitSettings())
    units, most = priced(fit), sizes[0] - fit.fixed_bytes + (sizes[1] - sizes[0]) // 2
    free = cheapest_loss(units, most)
    assert free is not None
    costliest = max(
        (i for i, unit in enumerate(units) if unit.unit.layers[0].part == "encoder"), key=lambda i: units[i].losses[free.entries[i]]
    )
    raised = without_costliest(units, free.entries)
    assert raised is not None
    assert raised[1] == units[costliest].unit.name
    again = cheapest_loss(raised[0], most)
    assert again is not None
    assert again.bytes <= most
    before, after = (units[costliest].unit.bytes[found.entries[costliest]] for found in (free, again))
    assert after > before
    assert again.loss >= free.loss
    largest = [len(unit.unit.bytes) - 1 for unit in units]
    assert without_costliest(units, largest) is None


def test_a_unit_in_float16_is_not_swapped_down() -> None:
    """Its codes do not exist: only layers that are quantized are also made in other formats."""
    units = priced(Fit(make_tiny(layers=1), BACKENDS["transcribe.cpp"], FitGoal(max_kl=1.0), FitSettings()))
    entries = [len(unit.unit.menu) - 1 if i % 2 else 0 for i, unit in enumerate(units)]
    assert units[1].unit.menu[entries[1]] is None
    most = 2 * sum(max(unit.unit.bytes) for unit in units)
    assert propose_swaps(units, entries, most, len(units)) == []
    entries[1] -= 1
    (swap,) = propose_swaps(units, entries, most, len(units))
    assert swap.entries[1] < entries[1]


def test_a_new_loop_takes_bits_from_elsewhere(
    speech_folder: Path, tmp_path: Path, limit: int, done: api.FitResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [("b", "a"), (), ("never",)]
    monkeypatch.setattr("sottovoce.fitting.run.new_loops", lambda *_: found.pop(0))
    result = fitted(tmp_path / "out", speech_folder, max_size=limit)
    guard = result.record.guard
    assert guard is not None
    assert (guard.looped, guard.remaining, len(guard.raised)) == (("b", "a"), (), 1)
    assert found == [("never",)]
    assert result.record.bytes == result.file.stat().st_size <= limit
    (before,), (after,) = ([unit.bytes for unit in record.units if unit.name == guard.raised[0]] for record in (done.record, result.record))
    assert after > before
    assert api.inspect(tmp_path / "out").fit == result.record


def test_loops_that_stay_are_named_and_the_fewest_win(
    speech_folder: Path, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [("a",), ("a", "b"), ("c",), ("d", "e")]
    monkeypatch.setattr("sottovoce.fitting.run.new_loops", lambda *_: found.pop(0))
    result = fitted(tmp_path / "out", speech_folder, max_size=limit)
    guard = result.record.guard
    assert guard is not None
    assert (guard.looped, guard.remaining) == (("a",), ("a",))
    assert guard.raised


def test_loops_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest recordings, of these the ones that loop now and did not before; the original says nothing new against itself."""
    model = make_tiny(layers=1)
    random = np.random.default_rng(0)
    recordings = tuple((0.1 * random.standard_normal(4000 * n)).astype(np.float32) for n in (1, 3, 2))
    data = CalibrationSpeech(
        ids=("a", "b", "c"), recordings=recordings, transcripts=((5, 6), (7, 8), (9, 9)), languages=(None,) * 3, speakers=(None,) * 3,
        cut=(), seconds=1.0, label_time_s=0.0,
    )  # fmt: skip
    speech = longest(model, [data], 2)
    assert speech.ids == ("b", "c")
    texts = iter(["no " * 9, "nothing here"])
    monkeypatch.setattr(type(model), "text", lambda *_: next(texts))
    assert new_loops(model, speech, silent) == ("b",)
    assert longest(model, [], 2).ids == ()


def test_stopped_between_a_layer_and_its_other_formats(
    done: api.FitResult, speech_folder: Path, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other formats of a layer are stored before it: what a second attempt stores again must not cost another layer its file."""
    add_layer, stored = StoredRun.add_layer, list[str]()

    def stop_once(run: StoredRun, name: str, result: LayerResult) -> None:
        add_layer(run, name, result)
        stored.append(name)
        if "|" in name and len(stored) > 2 and not stopped:
            stopped.append(name)
            raise KeyboardInterrupt

    def stop(kind: str, *_: object) -> None:
        if kind == "trying swaps":
            raise KeyboardInterrupt

    stopped = list[str]()
    monkeypatch.setattr(StoredRun, "add_layer", stop_once)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "out", speech_folder, max_size=limit, baselines=True)
    assert stopped
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "out", speech_folder, max_size=limit, baselines=True, resume=True, progress=stop)
    fitted(tmp_path / "out", speech_folder, max_size=limit, baselines=True, resume=True)
    assert (tmp_path / "out.gguf").read_bytes() == done.file.read_bytes()


def test_stopped_after_its_file_was_written(
    done: api.FitResult, speech_folder: Path, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sottovoce.api.fitting.save_quantized", stop)
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path / "out", speech_folder, max_size=limit, baselines=True)
    assert (tmp_path / "out.gguf").exists()
    fitted(tmp_path / "out", speech_folder, max_size=limit, baselines=True, resume=True)
    stored = api.inspect(tmp_path / "out").fit
    assert stored is not None
    assert replace(stored, passes=done.record.passes) == done.record  # passes of the stopped run are not counted


def test_a_quieter_model_that_breaks_the_bound_is_not_taken(speech_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("a",), ()]
    monkeypatch.setattr("sottovoce.fitting.run.new_loops", lambda *_: found.pop(0))
    monkeypatch.setattr(Fit, "_keeps_goal", lambda *_: not found and False)
    monkeypatch.setattr("sottovoce.fitting.run.GUARD_ROUNDS", 1)
    guard = fitted(tmp_path / "out", speech_folder, max_kl=0.5, swaps=0).record.guard
    assert guard is not None
    assert (guard.looped, guard.remaining, len(guard.raised)) == (("a",), ("a",), 1)


def test_swaps_together_keep_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would fit alone."""
    units = priced(Fit(make_tiny(layers=1), BACKENDS["transcribe.cpp"], FitGoal(max_kl=1.0), FitSettings()))
    entries, larger = [0] * len(units), 4
    size = schedule_of(units, entries).bytes
    grown = [unit.unit.bytes[larger] - unit.unit.bytes[0] for unit in units]
    swaps = [Swap({i: larger}, 0.0) for i in range(len(units)) if 0 < grown[i] < max(grown)]
    room = size + max(grown[i] for swap in swaps for i in swap.entries)
    meter = SimpleNamespace(kl=1.0, changed=lambda _: torch.zeros(1))
    monkeypatch.setattr("sottovoce.fitting.swaps.ChangeMeter", lambda *_: meter)
    monkeypatch.setattr("sottovoce.fitting.swaps._install_all", lambda *_: None)
    monkeypatch.setattr("sottovoce.fitting.swaps._with_layers", lambda result, _: result)
    monkeypatch.setattr("sottovoce.fitting.swaps.layers_restored", lambda *_: nullcontext())
    others = defaultdict[tuple[str, NumberFormat], Any](lambda: None)
    attempt = SimpleNamespace(result=SimpleNamespace(model=None), others=others)
    speech = SimpleNamespace(divergence=lambda change: change)
    swapped = try_swaps(make_tiny(layers=1), attempt, units, entries, swaps, room, speech, Passes(), silent)  # type: ignore[arg-type]
    assert 0 < swapped.accepted < len(swaps)
    assert schedule_of(units, swapped.entries).bytes <= room


def test_the_errors_of_another_model_are_refused(done: api.FitResult, speech_folder: Path) -> None:
    with pytest.raises(ModelError, match="has other layers than"):
        api.inspect_errors(done.file.with_suffix(""), speech_folder, against=make_tiny(layers=2), limit=2)
