"""Networks on other devices: nothing mixes devices, and the results are the CPU's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sottovoce import api
from sottovoce.api.tuning import draw, tune_quantized
from sottovoce.backends.registry import BACKENDS
from sottovoce.cli.main import main
from sottovoce.core.affine import Affine
from sottovoce.data.dataset import DataSet
from sottovoce.data.load import load_data
from sottovoce.errors import MachineError, RecipeError
from sottovoce.evaluation import recognizer
from sottovoce.evaluation.fallback import Fallback
from sottovoce.evaluation.held_out import HeldOutSpeech
from sottovoce.evaluation.recognizer import TorchRecognizer
from sottovoce.fitting.passes import Passes
from sottovoce.fitting.problem import make_problem
from sottovoce.fitting.unit_losses import ChangeMeter, measure_unit_losses
from sottovoce.models.speech_model import SpeechModel
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.calibration_set import CalibrationSpeech, prepare_speech
from sottovoce.quantization.fit_record import FitGoal
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.pipeline import QuantizedModel, brought_home
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.run_state import RunState
from sottovoce.quantization.tune_record import TuneRecord, TuneSettings
from sottovoce.system import devices
from sottovoce.system.devices import Placement, find_placement, placed
from sottovoce.system.progress import silent
from tests.conftest import make_tiny, make_tiny_moonshine, quantized
from tests.pretended_device import DEVICE, PretendedDevice, PretendedTensor

TRANSCRIPTS = ((5, 6, 7), (8, 9), (10, 11, 12, 13), (14,))
RECORDINGS = tuple((0.1 * np.random.default_rng(i).standard_normal(8000 + 1000 * i)).astype(np.float32) for i in range(4))
SPEECH = CalibrationSpeech(
    ids=tuple("abcd"), recordings=RECORDINGS, transcripts=TRANSCRIPTS, languages=(None,) * 4, speakers=tuple("abcd"),
    cut=(), seconds=4.0, label_time_s=0.0,
)  # fmt: skip
GPU = pytest.mark.gpu
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def small_whisper() -> Whisper:
    """A device has other kernels of fused attention than the CPU, so attention is written out."""
    model = make_tiny(width=32, layers=1)
    model.network.set_attn_implementation("eager")
    return model


def small_moonshine() -> SpeechModel:
    model = make_tiny_moonshine(width=32)
    model.network.set_attn_implementation("eager")
    return model


def same_weights(result: QuantizedModel, other: QuantizedModel) -> bool:
    codes = all(torch.equal(weight.codes, other.weights[name].codes) for name, weight in result.weights.items())
    state, others = result.model.network.state_dict(), other.model.network.state_dict()
    return codes and all(torch.equal(tensor, others[name]) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("make", "method", "offload", "float64"),
    [
        (small_whisper, "fade", False, True),
        (small_whisper, "fade-diagnostic", True, False),  # offloaded, and solved on the CPU as for Apple's GPUs
        (small_whisper, "awq", False, False),
        (small_whisper, "rtn-imatrix", True, True),
        (small_moonshine, "gptq", True, True),
    ],
)
def test_quantizing_never_mixes_devices_and_gives_the_codes_of_the_cpu(
    make: Callable[[], SpeechModel], method: str, offload: bool, float64: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recipe = make(), Recipe(method=METHODS[method])
    expected = quantized(model, recipe, SPEECH)
    if not float64:
        monkeypatch.setattr(devices, "WITHOUT_FLOAT64", {DEVICE.type})
    with PretendedDevice(refused=None if float64 else torch.float64) as device:
        running = model.placed(Placement(device=DEVICE, offload=offload), keep_float32=True)
        found = quantized(running, recipe, SPEECH)
        assert isinstance(next(found.model.network.parameters()), PretendedTensor)
        found = brought_home(found, model)
    assert device.calls > 1000
    assert same_weights(found, expected)
    assert found.model.placement.is_plain


@pytest.mark.parametrize("make", [small_whisper, small_moonshine])
@pytest.mark.parametrize("offload", [False, True])
def test_recognizing_with_fallback_and_confidence_on_a_device(make: Callable[[], SpeechModel], offload: bool) -> None:
    model, recordings = make(), RECORDINGS[:2]
    impossible = Fallback(temperatures=(0.0, 0.2), min_log_probability=0.0)
    greedy = TorchRecognizer(model).recognize(recordings, None, confidence=True).recognitions
    with PretendedDevice() as device:
        running = model.placed(Placement(device=DEVICE, offload=offload))
        found = TorchRecognizer(running).recognize(recordings, None, confidence=True).recognitions
        TorchRecognizer(running, fallback=impossible).recognize(recordings[:1], None)
    assert device.calls > 100
    assert [r.tokens for r in found] == [r.tokens for r in greedy]
    for ours, other in zip(found, greedy, strict=True):
        assert ours.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)


def test_labels_and_divergence_on_a_device(speech_folder: object) -> None:
    model = small_whisper()
    data = api_data(speech_folder)
    expected = prepare_speech(model, data).transcripts
    held = HeldOutSpeech(model, RECORDINGS, TRANSCRIPTS, [None] * 4)
    other = make_tiny(seed=1, width=32, layers=1)
    with PretendedDevice():
        running = model.placed(Placement(device=DEVICE))
        assert prepare_speech(running, data).transcripts == expected
        there = HeldOutSpeech(running, RECORDINGS, TRANSCRIPTS, [None] * 4)
        found = there.mean_divergence(other.placed(Placement(device=DEVICE)))
    assert found == pytest.approx(held.mean_divergence(other), rel=1e-4)


@pytest.mark.parametrize("make", [small_whisper, small_moonshine])
def test_tuning_never_mixes_devices(make: Callable[[], SpeechModel], speech_folder: object) -> None:
    """On the pretended device everything but the decoding of weights is computed as on the CPU, so the moves are the same."""
    model = make()
    start = quantized(model, Recipe(method=METHODS["rtn"], format=Affine(bits=2, group_size=32)))
    data, settings = load_data(str(speech_folder)), TuneSettings(steps=2, rate=5e-3, float_rate=5e-3, look_every=1)
    folds = draw([data], None, weighting="hours", utterances=4, held_out=2, seed=0)

    def tune_on(placement: Placement) -> tuple[QuantizedModel, TuneRecord]:
        result, record, _ = tune_quantized(
            start, model, folds, settings, seed=0, language=None, state=RunState(), placement=placement, progress=silent
        )
        return result, record

    expected, record = tune_on(Placement())
    with PretendedDevice() as device:
        found, there = tune_on(Placement(device=DEVICE))
    assert device.calls > 1000
    assert there.looks[-1].kl == pytest.approx(record.looks[-1].kl, rel=1e-3)
    assert there.looks[-1].kl != there.looks[0].kl
    assert found.model.placement.is_plain
    for name, tensor in found.model.network.state_dict().items():
        torch.testing.assert_close(tensor, expected.model.network.state_dict()[name], rtol=1e-3, atol=1e-3)


def test_tuning_is_in_float32(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="the placement is cpu, bfloat16; give a device alone"):
        api.tune(tmp_path / "q", tmp_path / "out", calibration=tmp_path, placement=Placement(dtype=torch.bfloat16))


def api_data(folder: object) -> DataSet:
    data = load_data(str(folder))
    return DataSet(data.name, data.utterances[:3])


def test_sums_in_float64_leave_a_device_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_whisper()
    held = HeldOutSpeech(model, RECORDINGS, TRANSCRIPTS, [None] * 4)
    unlike = make_tiny(seed=1, width=32, layers=1)
    expected = held.mean_divergence(unlike)
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", {DEVICE.type})
    with PretendedDevice(refused=torch.float64):
        running, other = model.placed(Placement(device=DEVICE)), unlike.placed(Placement(device=DEVICE))
        there = HeldOutSpeech(running, RECORDINGS, TRANSCRIPTS, [None] * 4)
        assert there.mean_divergence(other) == pytest.approx(expected, rel=1e-4)
        meter = ChangeMeter(other, there, Passes())
        layers = [layer.name for layer in model.layers()][:2]
        losses = measure_unit_losses(running, meter, {"unit": layers}, known={}, on_loss=lambda *_: None, progress=silent)
        assert meter.kl == pytest.approx(expected, rel=1e-4)
        assert losses["unit"].own > 0


def test_the_size_of_a_fit_on_a_device_is_that_of_the_cpu() -> None:
    pytest.importorskip("gguf")
    model, backend, goal = make_tiny(layers=1), BACKENDS["transcribe.cpp"], FitGoal(max_kl=1.0)
    expected = make_problem(model, backend, goal)
    with PretendedDevice():
        running = model.placed(Placement(device=DEVICE), keep_float32=True)
        found = make_problem(running, backend, goal, model)
    assert (found.fixed_bytes, found.base) == (expected.fixed_bytes, expected.base)


def test_the_clock_of_the_encoder_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = list[torch.device]()
    monkeypatch.setattr(recognizer, "synchronize", waited.append)
    TorchRecognizer(small_whisper()).recognize(RECORDINGS[:1], None)
    assert waited == [torch.device("cpu")]


def test_mixing_is_noticed() -> None:
    with PretendedDevice():
        there = torch.ones(3, device=DEVICE)
        with pytest.raises(AssertionError, match="mixes"):
            there + torch.ones(3)
        assert (there + torch.ones(3).to(DEVICE)).cpu().tolist() == [2, 2, 2]


def test_offloaded_weights_stay_on_the_cpu_but_for_the_first_of_all() -> None:
    with PretendedDevice():
        network = placed(small_whisper().network, Placement(device=DEVICE, offload=True))
        assert network.get_submodule("model.encoder.layers.0.fc1").weight.device.type == "cpu"
        assert network.get_submodule("model.encoder.layer_norm").weight.device == DEVICE
        assert network.device == DEVICE  # as transformers sees it
        assert network.get_submodule("proj_out").weight is network.get_submodule("model.decoder.embed_tokens").weight


def test_bfloat16_keeps_float32_weights_and_barely_changes_the_model() -> None:
    model = make_tiny()
    recipe, bf16 = Recipe(method=METHODS["fade"]), Placement(dtype=torch.bfloat16)
    running = model.placed(bf16, keep_float32=True)
    states = running.encode(running.features(RECORDINGS[:1])).states
    assert states.dtype == torch.bfloat16
    exact = quantized(model, recipe, SPEECH)
    found = brought_home(quantized(running, recipe, SPEECH), model)
    assert {tensor.dtype for tensor in found.model.network.state_dict().values()} == {torch.float32}
    held = HeldOutSpeech(model, RECORDINGS, TRANSCRIPTS, [None] * 4)
    # Some codes differ, and the result is about as near to the original.
    assert held.mean_divergence(found.model) < 1.5 * held.mean_divergence(exact.model)


def test_evaluating_in_bfloat16_casts_the_weights() -> None:
    model = make_tiny(width=32, layers=1)
    running = model.placed(Placement(dtype=torch.bfloat16))
    assert running.module("model.encoder.layers.0.fc1").weight.dtype == torch.bfloat16
    assert model.module("model.encoder.layers.0.fc1").weight.dtype == torch.float32
    found = TorchRecognizer(running).recognize(RECORDINGS[:1], None, confidence=True).recognitions
    assert found[0].log_probabilities
    assert running.digest() != model.digest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "'tpu' is not known; choose cpu, cuda, cuda:N, mps or auto"),
        ({"device": "cuda"}, "no device cuda that PyTorch"),
        ({"device": "mps"}, "no device mps that PyTorch"),
        ({"dtype": "int8"}, "number type 'int8' is not known"),
        ({"offload": True}, "here the CPU computes; leave it out"),
    ],
)
def test_what_is_not_there_is_refused(arguments: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_is_there", lambda kind: kind == "cpu")
    with pytest.raises(MachineError, match=message):
        find_placement(**arguments)  # type: ignore[arg-type]
    assert find_placement("auto") == Placement()


def test_a_number_type_that_a_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "conv1d", fails)
    with pytest.raises(MachineError, match="cannot compute in float16.*not implemented for 'Half'"):
        find_placement("cpu", "float16")


def test_other_runtimes_have_no_device() -> None:
    with pytest.raises(RecipeError, match="computes on the CPU"):
        api.open_recognizer("nothing", "onnxruntime", placement=Placement(dtype=torch.bfloat16))


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_is_there", lambda kind: kind == "cpu")
    done = CliRunner().invoke(main, ["transcribe", "nothing", "a.wav", "--device", "cuda"])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: there is no device cuda")


@GPU
@NEEDS_CUDA
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("method", ["fade", "awq"])
def test_a_gpu_gives_the_codes_of_the_cpu_but_for_a_few(method: str, offload: bool) -> None:
    """Sums have another order there, so some codes in a thousand may differ by one; 2 % is the limit."""
    model, recipe = make_tiny(), Recipe(method=METHODS[method])
    expected = quantized(model, recipe, SPEECH)
    running = model.placed(find_placement("cuda", offload=offload), keep_float32=True)
    found = brought_home(quantized(running, recipe, SPEECH), model)
    different = [(weight.codes != expected.weights[name].codes).float().mean() for name, weight in found.weights.items()]
    assert float(torch.stack(different).mean()) < 0.02
    held = HeldOutSpeech(expected.model, RECORDINGS, TRANSCRIPTS, [None] * 4)
    original = HeldOutSpeech(model, RECORDINGS, TRANSCRIPTS, [None] * 4)
    assert held.mean_divergence(found.model) < 0.1 * original.mean_divergence(expected.model)


@GPU
@NEEDS_CUDA
def test_a_gpu_recognizes_the_words_of_the_cpu() -> None:
    model = make_tiny()
    expected = TorchRecognizer(model).recognize(RECORDINGS, None).recognitions
    found = TorchRecognizer(model.placed(find_placement("cuda"))).recognize(RECORDINGS, None).recognitions
    assert [r.tokens for r in found] == [r.tokens for r in expected]
