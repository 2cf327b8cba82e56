"""Tuning on tiny models: what moves, what stays, what is measured, what is stored, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from sottovoce import api
from sottovoce.api.tuning import open_quantized, refuse_context
from sottovoce.backends.onnx_runtime.layout import ENCODER
from sottovoce.backends.onnx_runtime.writer import write_onnx
from sottovoce.backends.source import open_source
from sottovoce.backends.transcribe_cpp.writer import write_gguf
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.cli.main import main
from sottovoce.core.affine import Affine
from sottovoce.data.augment import Augmentation
from sottovoce.data.load import load_data
from sottovoce.errors import (
    CalibrationError,
    CheckpointError,
    DataError,
    MachineError,
    ModelError,
    OutputError,
    RecipeError,
    SottovoceError,
)
from sottovoce.evaluation.kl_divergence import token_kl
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.run_state import RunState
from sottovoce.quantization.tune_record import Look, TuneSettings
from sottovoce.report.page import folder_page
from sottovoce.tuning.looks import best_look, measure
from sottovoce.tuning.numbers import TunedNumbers, codes_digest
from sottovoce.tuning.run import Tuning, relative_error
from sottovoce.tuning.schedule import Exercise, exercises, rate_share, short_context
from sottovoce.tuning.speech import split
from sottovoce.tuning.teacher import Lesson, make_lessons, token_count
from sottovoce.tuning.words import sentences
from tests.conftest import make_tiny, make_tiny_moonshine, quantized
from tests.models.zoo import make_qwen

FEW = TuneSettings(steps=6, rate=5e-3, float_rate=5e-3, look_every=2)


def rtn(bits: int = 2, **changes: object) -> Recipe:
    return Recipe(method=method_named("rtn"), format=Affine(bits=bits, group_size=32, **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def checkpoint(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper at 2 bits."""
    folder = tmp_path_factory.mktemp("quantized") / "q"
    api.quantize(model_folder, folder, recipe=rtn())
    return folder


@pytest.fixture(scope="session")
def done(checkpoint: Path, speech_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> api.TuneResult:
    return api.tune(checkpoint, tmp_path_factory.mktemp("tuned") / "t", calibration=speech_folder, settings=FEW)


def lessons_of(original: SpeechModel, speech_folder: Path, *, sampled: bool = True, count: int = 4) -> list[Lesson]:
    data = load_data(speech_folder).take(count)
    speech = prepare_speech(original, data, language=None, state=RunState(), progress=lambda *_: None)
    return make_lessons(original, speech, sampled=sampled, seed=0, doing="listening", progress=lambda *_: None)


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MachineError, match="tuning runs in one process, and torchrun has started 2"):
        api.tune(tmp_path / "q", tmp_path / "out", calibration=tmp_path)


def test_it_comes_nearer_and_says_how_far(done: api.TuneResult, checkpoint: Path) -> None:
    record = done.record
    assert [look.step for look in record.looks] == [0, 2, 4, 6]
    assert record.chosen > 0
    assert record.best.kl < 0.95 * record.start.kl
    assert record.best.seen_kl < record.start.seen_kl
    assert record.original == read_manifest(checkpoint).source
    assert 0.001 < record.moved[0].change < 0.05
    assert set(record.held_out).isdisjoint(record.speech.utterances)
    assert not record.calibrated_on
    api.verify(done.folder)


def test_codes_stay_and_the_file_holds_what_was_measured(done: api.TuneResult, checkpoint: Path) -> None:
    start, _ = open_quantized(checkpoint)
    assert codes_digest(start.weights) == codes_digest(done.quantized.weights) == done.record.codes
    moved = [name for name, weight in start.weights.items()
             if not torch.equal(weight.parameters["scale"], done.quantized.weights[name].parameters["scale"])]  # fmt: skip
    assert len(moved) == len(start.weights)
    read = api.load(done.folder)
    for (name, mine), (_, stored) in zip(done.quantized.model.network.state_dict().items(), read.network.state_dict().items(), strict=True):
        assert torch.equal(mine, stored), name
    first = start.model.network.state_dict()
    for name in ("model.encoder.layer_norm.bias", "model.encoder.embed_positions.weight", "model.encoder.conv1.bias"):
        assert not torch.equal(first[name], read.network.state_dict()[name])
    assert torch.equal(first["model.encoder.conv1.weight"], read.network.state_dict()["model.encoder.conv1.weight"])


def test_one_code_more_is_another_digest(checkpoint: Path) -> None:
    start, _ = open_quantized(checkpoint)
    before = codes_digest(start.weights)
    start.weights["proj_out"].codes[0, 0] ^= 1
    assert codes_digest(start.weights) != before


def test_no_move_writes_the_very_bytes(checkpoint: Path, speech_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks say that everything gets worse: so the start is kept."""
    worse = iter(range(1, 10))
    monkeypatch.setattr("sottovoce.tuning.run.look", lambda *args: Look(step=args[-1], kl=float(next(worse)), seen_kl=1.0))
    result = CliRunner().invoke(
        main, ["tune", str(checkpoint), str(tmp_path / "t"), "--calibration", str(speech_folder), "--steps", "3"], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "no look was better than the start, so the start is kept" in " ".join(result.stdout.split())
    assert (tmp_path / "t" / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
    manifest = read_manifest(tmp_path / "t")
    assert manifest.tune is not None
    assert manifest.tune.chosen == 0
    assert manifest.tune.moved[0].change == 0


@pytest.mark.parametrize("context", ["full", "short"])
def test_a_stopped_run_goes_on_to_the_same_bytes(checkpoint: Path, speech_folder: Path, tmp_path: Path, context: str) -> None:
    settings = replace(FEW, context=context)  # type: ignore[arg-type]

    def tuned(name: str, **more: object) -> Path:
        return api.tune(checkpoint, tmp_path / name, calibration=speech_folder, settings=settings, **more).folder  # type: ignore[arg-type]

    def stop(kind: str, step: int, _total: int, _detail: str = "") -> None:
        if kind == "tuning" and step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned("t", progress=stop)
    assert not (tmp_path / "t").exists()
    with pytest.raises(OutputError, match="some steps of its tuning taken; --resume continues it"):
        tuned("t")
    steps = set[int]()
    again = tuned("t", resume=True, progress=lambda kind, step, *_: steps.add(step) if kind == "tuning" else None)
    assert min(steps) == 2  # the last look was after two
    whole = tuned("whole")
    for name in (WEIGHTS, "README.md"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
    assert read_manifest(again).tune == read_manifest(whole).tune


def test_gradients_of_a_scale_and_a_norm_agree_with_finite_differences(speech_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole network: KL and encoder error of two utterances. Storage types are left out, so that steps can be small."""
    original = make_tiny()
    result, lessons = quantized(original, rtn(bits=3)), lessons_of(original, speech_folder, count=2)
    monkeypatch.setattr("sottovoce.tuning.numbers.finite_float16", lambda tensor: tensor)
    monkeypatch.setattr(Affine, "storable", lambda _, scale: scale)
    tuning = Tuning(original, TunedNumbers(result.model, result.weights), lessons, lessons, FEW, (1e-3, 1e-3), seed=0)
    numbers, step = tuning.numbers, [Exercise(0, 0, None), Exercise(1, 1, 70)]
    scale = numbers.scales["model.encoder.layers.1.fc2"]["scale"]
    norm = numbers.floats["model.decoder.layers.0.encoder_attn_layer_norm.weight"]
    with torch.enable_grad():
        decoded, leaves = tuning._student.set()
        tuning._gather(step)
        torch.autograd.backward(decoded, [leaf.grad for leaf in leaves])

    def loss() -> float:
        tokens = sum(len(tuning._training[one.lesson].states[one.transcript]) for one in step)
        tuning._student.set()
        parts = [tuning.losses(tuning._training[one.lesson], one) for one in step]
        return sum(float(kl) / tokens + float(error) / 2 for kl, error in parts)

    for move in (scale, norm):
        place = int(move.grad.abs().argmax())
        values = []
        for sign in (1, -1):
            move.data.flatten()[place] += sign * 5e-3
            values.append(loss())
            move.data.flatten()[place] -= sign * 5e-3
        assert float(move.grad.flatten()[place]) == pytest.approx((values[0] - values[1]) / 1e-2, rel=0.03)


def test_losses_against_slow_sums() -> None:
    random = np.random.default_rng(0)
    p, q = (torch.log_softmax(torch.from_numpy(random.standard_normal((3, 7))), -1) for _ in range(2))
    slow = math.fsum(
        math.exp(float(p[t, v])) * (float(p[t, v]) - float(q[t, v])) for t in range(3) for v in range(7)
    )  # fmt: skip
    assert float(token_kl(p, q).sum()) == pytest.approx(slow, rel=1e-12)
    assert float(token_kl(p, p).sum()) == 0
    states, wanted = (torch.from_numpy(random.standard_normal((4, 5))) for _ in range(2))
    error = sum((float(states[t, i]) - float(wanted[t, i])) ** 2 for t in range(4) for i in range(5))
    size = sum(float(wanted[t, i]) ** 2 for t in range(4) for i in range(5))
    assert float(relative_error(states, wanted)) == pytest.approx(error / size, rel=1e-6)


def test_looks_measure_the_mean_over_tokens(speech_folder: Path) -> None:
    original, other = make_tiny(), make_tiny(seed=1)
    lessons = lessons_of(original, speech_folder, sampled=False)
    total, ratio, count = 0.0, 0.0, 0
    for lesson in lessons:
        features = original.features([lesson.recording])["input_features"]
        prompt = original.teacher_forcing([[]], None)[0]["decoder_input_ids"][0].tolist()
        ids = torch.tensor([prompt + list(lesson.transcripts[0])])
        rows = [
            torch.log_softmax(model.network(input_features=features, decoder_input_ids=ids).logits[0].double(), -1).tolist()
            for model in (original, other)
        ]
        for i, (p, q) in enumerate(list(zip(*rows, strict=True))[len(prompt) - 1 :]):
            total += math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            count += 1
            if i < len(lesson.transcripts[0]):
                ratio += q[lesson.transcripts[0][i]] - p[lesson.transcripts[0][i]]
    measured = measure(original, other, lessons, listen=True)
    assert count == token_count(lessons)
    assert measured.kl == pytest.approx(total / count, rel=1e-4)
    assert measured.log_ratio == pytest.approx(ratio / (count - len(lessons)), rel=1e-4)
    assert set(measured.loops) <= {lesson.id for lesson in lessons}


def test_lessons_are_the_originals_and_sampled_ones_are_seeded(speech_folder: Path) -> None:
    original = make_tiny()
    one, again = lessons_of(original, speech_folder), lessons_of(original, speech_folder)
    for lesson, same in zip(one, again, strict=True):
        greedy, sampled = lesson.transcripts
        assert greedy == tuple(original.decode(original.encode(original.features([lesson.recording])), None)[0])
        assert len(sampled) <= len(greedy) + 8
        assert sampled == same.transcripts[1]
        assert len(lesson.encoder_states) == -(-len(lesson.recording) // 320)
    assert any(lesson.transcripts[0] != lesson.transcripts[1] for lesson in one)


def test_a_short_context_equals_a_model_with_a_shorter_table(speech_folder: Path) -> None:
    original = make_tiny()
    encoder = original.network.model.encoder
    shorter = WhisperEncoder(WhisperConfig(**(original.network.config.to_dict() | {"max_source_positions": 60}))).eval()
    state = encoder.state_dict()
    shorter.load_state_dict(state | {"embed_positions.weight": state["embed_positions.weight"][:60]})
    features = original.features([load_data(speech_folder).utterances[0].samples()])["input_features"]
    wanted = shorter(features[..., :120]).last_hidden_state

    def shortened(positions: int) -> torch.Tensor:
        return original.encode(original.shortened({"input_features": features}, positions)).states

    torch.testing.assert_close(shortened(60), wanted)
    whole = original.encode({"input_features": features}).states
    torch.testing.assert_close(shortened(100), whole)
    assert not torch.allclose(whole[:, :60], wanted, atol=1e-2)


def test_short_contexts_get_better_and_are_in_the_manifest(checkpoint: Path, speech_folder: Path, tmp_path: Path) -> None:
    done = api.tune(checkpoint, tmp_path / "t", calibration=speech_folder, settings=replace(FEW, context="short"))
    start, best = done.record.start, done.record.best
    assert best.short_kl is not None
    assert start.short_kl is not None
    assert best.short_kl < 0.95 * start.short_kl
    assert best.kl <= 1.25 * start.kl
    manifest = read_manifest(done.folder)
    assert manifest.short_context is not None
    assert (manifest.short_context.margin, manifest.short_context.smallest) == (64, 100)


def test_the_best_look_has_no_more_loops_and_keeps_the_full_context() -> None:
    start = Look(step=0, kl=1.0, seen_kl=1.0, short_kl=2.0, seen_short_kl=1.0, loops=("a",))
    looks = [
        start,
        replace(start, step=1, short_kl=0.5, loops=("a", "b")),
        replace(start, step=2, short_kl=0.6, kl=1.3),
        replace(start, step=3, short_kl=0.9, kl=1.2, loops=("b",)),
        replace(start, step=4, short_kl=0.9, kl=0.8),
    ]
    assert best_look(looks).step == 3
    assert best_look(looks[:3]).step == 0


def test_every_utterance_comes_once_before_any_comes_again(speech_folder: Path) -> None:
    original = make_tiny()
    lessons = lessons_of(original, speech_folder, count=6)
    settings = TuneSettings(steps=300, batch_size=4, context="short", sampled=0.2)
    steps = exercises(original, lessons, settings, seed=3)
    assert steps == exercises(original, lessons, settings, seed=3) != exercises(original, lessons, settings, seed=4)
    drawn = [one for step in steps for one in step]
    for start in range(0, len(drawn), 6):
        assert {one.lesson for one in drawn[start : start + 6]} == set(range(6))
    assert 0.16 < sum(one.transcript for one in drawn) / len(drawn) < 0.24
    # The window has 100 positions, so only clips much shorter than it can be cut.
    assert all(one.context is None for one in drawn)
    wide = make_tiny()
    wide.network.config.max_source_positions = 1500
    contexts = [(one.context, len(lessons[one.lesson].recording)) for step in exercises(wide, lessons, settings, seed=3) for one in step]
    margins = [context - -(-samples // 320) for context, samples in contexts if context is not None]
    assert 0.25 < sum(context is None for context, _ in contexts) / len(contexts) < 0.35
    assert all(context >= 100 for context, _ in contexts if context is not None)
    assert max(margins) <= 128
    assert short_context(wide, 16000, 16) == 100
    assert short_context(wide, 160000, 16) == 516
    assert short_context(wide, 480000, 16) is None
    assert short_context(make_tiny_moonshine(), 16000, 16) is None


def test_rates_rise_and_fall() -> None:
    shares = [rate_share(step, 100) for step in range(100)]
    assert shares[0] == 0.1
    assert shares[9] == shares[10] == 1.0
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[99] < 0.02


@pytest.mark.parametrize("make", [make_tiny_moonshine, make_qwen])
def test_other_families(make: object, speech_folder: Path) -> None:
    original = make()  # type: ignore[operator]
    result = quantized(original, rtn(bits=2))
    lessons = lessons_of(original, speech_folder, count=4)
    tuning = Tuning(
        original,
        TunedNumbers(result.model, result.weights),
        lessons[:2],
        lessons[2:],
        replace(FEW, steps=8, look_every=8),
        (1e-2, 1e-2),
        seed=0,
    )
    tuned = tuning.run(RunState(), lambda *_: None)
    assert tuned.looks[-1].seen_kl < 0.97 * tuned.looks[0].seen_kl
    with pytest.raises(ModelError, match="ends with the recording"):
        refuse_context(original, TuneSettings(context="short"))


def test_exported_files_hold_the_tuned_values(speech_folder: Path, tmp_path: Path) -> None:
    """Q4_1 of transcribe.cpp, read back by the package `gguf`; MatMulNBits of ONNX Runtime, run."""
    onnxruntime = pytest.importorskip("onnxruntime")
    enough = replace(FEW, steps=16, look_every=4)  # to be better than the start
    model, model_folder = make_tiny(layers=1), tmp_path / "model"
    model.network.save_pretrained(model_folder)
    model.processor.save_pretrained(model_folder)
    for target, grid in (("transcribe.cpp", {"float16_min": True}), ("onnxruntime", {})):
        out = tmp_path / target
        api.quantize(model_folder, out, recipe=rtn(bits=4, **grid), target=target)
        start = open_source(out)
        tuned = open_source(api.tune(out, tmp_path / f"{target}-tuned", calibration=speech_folder, settings=enough).folder)
        name = "model.encoder.layers.0.fc2"
        assert not torch.equal(start.weights[name].dequantize(), tuned.weights[name].dequantize())
        table = tuned.floats()["model.encoder.embed_positions.weight"]
        assert not np.array_equal(table, start.floats()["model.encoder.embed_positions.weight"])
        if target == "transcribe.cpp":
            write_gguf(tuned, tmp_path / "t.gguf")
            found = {t.name: t for t in gguf.GGUFReader(tmp_path / "t.gguf").tensors}
            weight = found["enc.blocks.0.ffn.fc2.weight"]
            assert np.array_equal(gguf.dequantize(weight.data, weight.tensor_type), tuned.weights[name].dequantize().numpy())
            weight = found["enc.pos_emb.weight"]
            assert np.array_equal(gguf.dequantize(weight.data, weight.tensor_type), table)
        else:
            write_onnx(tuned, tmp_path / "onnx", activations="float32")
            session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / ENCODER), providers=["CPUExecutionProvider"])
            features = tuned.model.features([load_data(speech_folder).utterances[0].samples()])
            heard = torch.from_numpy(session.run(None, {"input_features": features["input_features"].numpy()})[0])
            wanted, before = (source.model.encode(features).states for source in (tuned, start))
            assert float((heard - wanted).norm() / wanted.norm()) < 2e-4
            assert float((before - wanted).norm() / wanted.norm()) > 1e-2


def test_quantize_and_tune_at_once(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    """The same as one after the other."""
    recipe = replace(rtn(bits=2), method=method_named("gptq"))
    together = api.quantize(model_folder, tmp_path / "both", recipe=recipe, calibration=speech_folder, utterances=6, tune=FEW)
    api.quantize(model_folder, tmp_path / "q", recipe=recipe, calibration=speech_folder, utterances=6)
    apart = api.tune(tmp_path / "q", tmp_path / "t", calibration=speech_folder, settings=FEW)
    assert (tmp_path / "both" / WEIGHTS).read_bytes() == (tmp_path / "t" / WEIGHTS).read_bytes()
    both = read_manifest(tmp_path / "both")
    assert both.tune == apart.record
    assert both.tune is not None
    assert codes_digest(together.weights) == both.tune.codes
    # Utterances of speakers on whom the codes were calibrated are held out last: only s2 is free of that.
    assert both.calibration is not None
    assert set(both.tune.held_out[:2]) == {"u4", "u5"}
    assert both.tune.calibrated_on == len(set(both.tune.held_out) & set(both.calibration.utterances)) == 1


def test_the_command_and_what_inspect_shows(checkpoint: Path, speech_folder: Path, tmp_path: Path) -> None:
    arguments = ["tune", str(checkpoint), str(tmp_path / "t"), "--calibration", str(speech_folder), "--steps", "2", "--rate", "0.005"]
    result = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record["rate"] == 0.005
    assert record["float_rate"] == 1e-3
    assert len(record["looks"]) == 3
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "t")], catch_exceptions=False).stdout
    assert "the tuning" in shown
    assert "codes kept" in shown
    assert "tuned |" in (tmp_path / "t" / "README.md").read_text()


def test_varied_speech_is_trained_on_and_not_looked_at(checkpoint: Path, speech_folder: Path, tmp_path: Path) -> None:
    arguments = ["tune", str(checkpoint), str(tmp_path / "t"), "--calibration", str(speech_folder), "--steps", "2", "--augment"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert "varied: clips cut and joined" in " ".join(result.stdout.split())
    tune = read_manifest(tmp_path / "t").tune
    assert tune is not None
    assert tune.speech.augmentation == Augmentation()
    assert any("~" in name or "+" in name for name in tune.speech.utterances)
    assert set(tune.held_out) <= {utterance.id for utterance in load_data(speech_folder)}


def test_a_start_that_was_calibrated_on_varied_speech_is_known(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    """Its record has the ids of pieces, and the recordings that they are of flatter the start all the same."""
    anonymous = tmp_path / "speech"
    anonymous.mkdir()
    rows = [json.loads(line) for line in (speech_folder / "manifest.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key != "speaker"} | {"audio": str(speech_folder / row["audio"])} for row in rows]
    (anonymous / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    made = api.quantize(model_folder, tmp_path / "q", calibration=anonymous, utterances=len(rows), augmentation=Augmentation(cut=0.5))
    assert made.calibration is not None
    assert not {row["id"] for row in rows} <= set(made.calibration.utterances)
    folds = split(load_data(anonymous), 4, 4, made.calibration)
    assert folds.calibrated_on == len(folds.held_out)


def test_a_model_that_is_surer_than_its_original_is_named(done: api.TuneResult) -> None:
    record = done.record
    assert record.best.seen_log_ratio is not None
    for ratio, said in ((0.02, True), (-0.02, False), (None, False)):
        looks = tuple(replace(look, seen_log_ratio=ratio) for look in record.looks)
        text = " ".join(sentences(replace(record, looks=looks)))
        assert ("it has drifted" in text) == said
        assert ("by 0.0200 nats per token" in text) == said


def test_the_report_shows_both_folds(done: api.TuneResult) -> None:
    page = folder_page(done.folder)
    assert "<h2>Tuning</h2>" in page
    assert f"the look after step {done.record.chosen} is kept" in page
    chart = page[page.index('id="looks"') :]
    chart = chart[: chart.index("</svg>")]
    assert all(f">{name}<" in chart for name in ("held out", "seen", "kept", "full context"))
    assert "short contexts" not in chart


def test_quantize_can_tune_too(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    base = ["quantize", str(model_folder), str(tmp_path / "t"), "--method", "rtn", "--bits", "2", "--group-size", "32"]
    refused = CliRunner().invoke(main, [*base, "--context", "short"])
    assert refused.exit_code == 2
    assert "--context has no effect without --tune" in refused.stderr
    refused = CliRunner().invoke(main, [*base, "--tune"])
    assert refused.exit_code == 2
    assert "tuning listens to speech: give calibration data" in refused.stderr
    settings = TuneSettings(steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sottovoce.quantization.tune_record.TuneSettings", lambda context: replace(settings, context=context))
        done = CliRunner().invoke(main, [*base, "--tune", "--calibration", str(speech_folder), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(json.loads(done.stdout)["tune"]["looks"]) == 3


def test_speech_of_a_tuning_proves_nothing_afterwards(done: api.TuneResult, speech_folder: Path, tmp_path: Path) -> None:
    data = load_data(speech_folder)

    def certify(names: tuple[str, ...]) -> None:
        own = replace(data, utterances=tuple(u for u in data if u.id in names))
        api.certify(done.folder, own, against=done.record.original, ledger=tmp_path / "ledger")

    with pytest.raises(DataError, match="was tuned on 1 of these recordings"):
        certify(done.record.speech.utterances[:1])
    with pytest.raises(DataError, match="was chosen by 2 of these recordings"):
        certify(done.record.held_out[:2])


def one_sentence(error: pytest.ExceptionInfo[SottovoceError]) -> None:
    assert "\n" not in str(error.value)


def test_speech_that_is_too_little(checkpoint: Path, speech_folder: Path, tmp_path: Path) -> None:
    data = load_data(speech_folder)
    refused = [
        (replace(data, utterances=data.utterances[:1]), "of 1 utterances 1 are held out"),
        (replace(data, utterances=tuple(replace(u, speaker="one") for u in data)), "and 0 by other speakers remain"),
    ]
    silent = tmp_path / "silent"
    silent.mkdir()
    for i in range(8):
        soundfile.write(silent / f"{i}.wav", np.zeros(16000), 16000)
    refused.append((load_data(silent), "0 usable recordings; at least 2 are needed"))
    german = replace(data, utterances=tuple(replace(u, language="de") for u in data))
    for speech, match in refused:
        with pytest.raises(CalibrationError, match=match) as error:
            api.tune(checkpoint, tmp_path / "t", calibration=speech)
        one_sentence(error)
    with pytest.raises(ModelError, match="transcribes English"):
        api.tune(checkpoint, tmp_path / "t", calibration=german)
    assert not (tmp_path / "t").exists()


def test_an_original_that_hears_no_word_teaches_nothing(speech_folder: Path) -> None:
    original = make_tiny()
    speech = prepare_speech(original, load_data(speech_folder).take(2), language=None, state=RunState(), progress=lambda *_: None)
    with pytest.raises(CalibrationError, match="hears no word in any of the 2 utterances"):
        make_lessons(original, replace(speech, transcripts=((), ())), sampled=True, seed=0, doing="listening", progress=lambda *_: None)


def test_what_is_no_start_is_refused(
    checkpoint: Path, done: api.TuneResult, model_folder: Path, speech_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is tuned already") as error:
        api.tune(done.folder, tmp_path / "t", calibration=speech_folder)
    one_sentence(error)
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    for path in (tmp_path / "file.gguf", model_folder, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="is not a folder written by `sottovoce quantize`") as error:
            api.tune(path, tmp_path / "t", calibration=speech_folder)
        one_sentence(error)
    other = make_tiny(width=32)
    with pytest.raises(ModelError, match="has other layers than"):
        api.tune(checkpoint, tmp_path / "t", calibration=speech_folder, against=other)
    moved = tmp_path / "moved"
    make = make_tiny()
    make.network.save_pretrained(moved)
    make.processor.save_pretrained(moved)
    api.quantize(moved, tmp_path / "q", recipe=rtn())
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="its original cannot be loaded .* name it with --against"):
        api.tune(tmp_path / "q", tmp_path / "t", calibration=speech_folder)
    assert not (tmp_path / "t").exists()


def test_settings_out_of_range() -> None:
    for settings in (
        {"steps": 0},
        {"rate": 0.0},
        {"float_rate": math.nan},
        {"sampled": 2.0},
        {"prior": -1.0},
        {"full_share": 1.5},
        {"context": "tiny"},
    ):
        with pytest.raises(RecipeError, match="is out of range|is not known"):
            TuneSettings(**settings)  # type: ignore[arg-type]


def test_held_out_speakers_are_nowhere_else(speech_folder: Path) -> None:
    data = load_data(speech_folder)
    folds = split(data, 6, 48, None)
    assert len(folds.held_out) == 3
    assert len(folds.training) == 6
    assert {u.speaker for u in folds.held_out}.isdisjoint(u.speaker for u in folds.training)
