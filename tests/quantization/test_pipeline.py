"""The pipeline on a tiny random Whisper: every method, determinism, the folder it writes, and what reads it."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sottovoce import api
from sottovoce.checkpoint.layout import layer_tensors
from sottovoce.checkpoint.load import load_quantized, read_weights
from sottovoce.checkpoint.manifest import read_manifest, write_sealed
from sottovoce.checkpoint.save import save_quantized
from sottovoce.core.affine import Affine
from sottovoce.core.gptq import gptq
from sottovoce.core.hessian import Hessian
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.rtn import rtn
from sottovoce.data.load import load_data
from sottovoce.errors import CalibrationError, CheckpointError, OutputError, RecipeError
from sottovoce.models.layers import Layer
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.batches import PositionWeights, make_batches
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.collect import collect_statistics
from sottovoce.quantization.install import planned_layers
from sottovoce.quantization.layer import quantize_layer
from sottovoce.quantization.methods import METHODS, QEP, method_named
from sottovoce.quantization.recipe import Recipe, Rule
from sottovoce.quantization.statistics import LayerStatistics, MomentAccumulator
from sottovoce.quantization.windows import make_windows
from tests.conftest import make_tiny, make_tiny_moonshine, planned, quantized

SMALL = Affine(bits=4, group_size=32)


def run(recipe: Recipe, speech_folder: Path, out: Path, seed: int = 0) -> object:
    return api.quantize(make_tiny(), out, recipe=recipe, calibration=speech_folder, seed=seed, batch_size=4)


def digests(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_method_at_every_width(method: str, bits: int, speech_folder: Path, tmp_path: Path) -> None:
    result = run(Recipe(method=METHODS[method], format=Affine(bits=bits, group_size=32)), speech_folder, tmp_path / "out")
    assert [r.name for r in result.reports if r.part == "head"] == ["proj_out"]
    assert len(result.reports) == len(result.plan.layers) == 2 * 6 + 2 * 10 + 1
    network, _ = load_quantized(tmp_path / "out")
    for name, parameter in result.model.network.named_parameters():
        assert torch.equal(network.get_parameter(name), parameter), name


def test_same_inputs_and_seed_give_the_same_bytes(speech_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(Recipe(format=SMALL), speech_folder, tmp_path / name)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_fade_leaves_less_error_than_rounding(speech_folder: Path, tmp_path: Path) -> None:
    result = run(Recipe(format=Affine(bits=3, group_size=32)), speech_folder, tmp_path / "out")
    assert all(r.added_error < r.rounded_error for r in result.reports)
    assert all(0 <= r.strength <= 1 for r in result.reports)
    assert any(r.strength > 0 for r in result.reports)
    assert all(r.bias_absorbed == ("k_proj" not in r.name and r.part != "head") for r in result.reports)


def test_absorbed_bias_matches_the_mean_output(speech_folder: Path) -> None:
    """On the calibration positions, the mean output of the first layer is exactly the original's."""
    model = make_tiny()
    speech = prepare_speech(model, load_data(speech_folder))
    recipe = Recipe(format=Affine(bits=2, group_size=32), frame_subsampling=1)
    result = quantized(model, recipe, speech)
    name = "model.encoder.layers.0.self_attn.q_proj"
    old, new = model.module(name), result.model.module(name)
    seen = []
    hook = old.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model.encode(model.features(speech.recordings))
    hook.remove()
    heard = seen[0][model._frame_mask(speech.recordings)]
    torch.testing.assert_close(new(heard).mean(0), old(heard).mean(0), rtol=1e-2, atol=2e-3)
    assert not torch.allclose(new(heard).mean(0) - new.bias + old.bias, old(heard).mean(0), rtol=1e-2, atol=2e-3)


def test_a_layer_makes_good_what_its_stream_lacks() -> None:
    """Where the stream lacks `B x^`, the layer that writes into it is to become `W + B`, mean included."""
    generator = torch.Generator().manual_seed(0)
    weight, lacking = torch.randn(16, 32, generator=generator), 0.3 * torch.randn(16, 32, generator=generator)
    shift = torch.randn(16, generator=generator)
    folds, samples, gaps = [], [], []
    for _ in range(2):
        rows = torch.randn(500, 32, generator=generator)
        gap = rows @ lacking.T + shift
        sums = MomentAccumulator(32, weight)
        sums.add(rows, rows, torch.ones(500, 1), gap)
        folds.append(sums.finish())
        samples.append(rows)
        gaps.append(gap)
    rows, gap = torch.cat(samples), torch.cat(gaps)
    inputs = LayerStatistics((folds[0], folds[1]), rows, rows, torch.zeros(0), gap)
    method = QEP(strength=1.0, ridge=1e-6, absorb_bias=True, correct_mlp_output=True)
    layer = Layer("fc2", "encoder", "frames", mlp_output=True, residual="norm")
    solution = quantize_layer(layer, weight, torch.zeros(16), inputs, Affine(bits=8, group_size=32), method)
    values, half_a_step = solution.weight.dequantize(), 0.51 * solution.weight.parameters["scale"].float().repeat_interleave(32, 1)
    assert bool(((values - weight - lacking).abs() <= 2 * half_a_step).all())
    assert solution.bias is not None
    torch.testing.assert_close(solution.bias, shift, rtol=0, atol=2e-2)
    share = float(gap.square().sum() / (rows @ weight.T).square().sum())
    assert solution.report.inherited_error == pytest.approx(share, rel=1e-3)
    assert solution.report.outgoing_error < 1e-3 * share


def test_original_model_is_left_alone(speech_folder: Path, tmp_path: Path) -> None:
    model = make_tiny()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    api.quantize(model, tmp_path / "out", recipe=Recipe(format=SMALL), calibration=speech_folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())


def test_tied_head_is_one_matrix_stored_once(speech_folder: Path, tmp_path: Path) -> None:
    result = run(Recipe(format=SMALL), speech_folder, tmp_path / "out")
    network = result.model.network
    assert network.proj_out.weight is network.model.decoder.embed_tokens.weight
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.decoder.embed_tokens.weight_packed" in names
    assert not [name for name in names if name.startswith("proj_out")]


@pytest.mark.parametrize("method", ["qep", "fade"])
@pytest.mark.parametrize("make", [make_tiny, make_tiny_moonshine])
def test_every_layer_was_solved_for_the_inputs_it_has_in_the_end(
    make: Callable[[], SpeechModel], method: str, speech_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Walk through the finished network beside the original and solve each layer once more: the same codes, head excepted. (So
    the decoder's layers know the quantized embedding, which is their head.)"""
    monkeypatch.setattr("sottovoce.quantization.pipeline.round_floats_to_float16", lambda *_: None)
    model = make()
    speech = prepare_speech(model, load_data(speech_folder))
    recipe = Recipe(method=METHODS[method], format=SMALL, frame_subsampling=1)
    result = quantized(model, recipe, speech, batch_size=4)
    batches = make_batches(model, make_windows(model, speech, joined=recipe.joined), batch_size=4, positions=PositionWeights())
    layers = [layer for layer in planned_layers(model, result.plan) if layer.name != model.head]
    assert len(layers) == len(result.plan.layers) - 1
    for layer, inputs in collect_statistics(
        [model.network, result.model.network], batches, layers, compensate_residual=recipe.method.compensate_residual
    ):
        module = model.module(layer.name)
        again = quantize_layer(layer, module.weight, module.bias, inputs, SMALL, recipe.method)
        assert torch.equal(again.weight.codes, result.weights[layer.name].codes), layer.name


def test_a_tied_head_is_solved_for_a_decoder_that_is_not_quantized_yet(speech_folder: Path) -> None:
    """Its Hessian, made the plain way: original decoder behind the quantized encoder."""
    model = make_tiny()
    speech = prepare_speech(model, load_data(speech_folder))
    recipe = Recipe(method=METHODS["gptq"], format=SMALL, head_embedding_weight=0.5)
    result = quantized(model, recipe, speech, batch_size=4)
    assert not result.model.module(model.encoder)._forward_hooks  # which would keep all it ever hears
    half = make_tiny()
    half.network.model.encoder = result.model.network.model.encoder
    rows = []
    for recording, transcript in zip(speech.recordings, speech.transcripts, strict=True):
        inputs, mask = half.teacher_forcing([transcript], None)
        rows.append(half.decoder_states(half.encode(half.features([recording])), inputs)[mask].double())
    states = torch.cat(rows)
    hessian = states.T @ states
    hessian += 0.5 * hessian.diagonal().mean() * torch.eye(len(hessian))
    expected = gptq(model.module("proj_out").weight, Hessian(hessian), SMALL, damping=0.01, act_order=False)
    same = expected.weight.codes == result.weights["proj_out"].codes
    assert same.float().mean() > 0.999  # the encoder's biases and norms have been rounded to float16 since


def test_fresh_process_without_this_package(speech_folder: Path, tmp_path: Path) -> None:
    """`transformers` alone loads the folders and computes the very same numbers."""
    features, ids = torch.randn(1, 16, 200), torch.tensor([[257, 5, 6]])
    torch.save({"features": features, "ids": ids}, tmp_path / "in.pt")
    networks = {}
    for bits, symmetric in itertools.product((2, 3, 4, 8), (False, True)):
        recipe = Recipe(method=METHODS["rtn"], format=Affine(bits=bits, group_size=32, symmetric=symmetric))
        name = f"{bits}-bit{'-symmetric' if symmetric else ''}"
        networks[name] = run(recipe, speech_folder, tmp_path / name).model.network
    script = (
        "import sys, torch; sys.modules['sottovoce'] = None\n"
        "from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor\n"
        "x, found = torch.load('in.pt'), {}\n"
        "for name in sys.argv[1:]:\n"
        "    model = AutoModelForSpeechSeq2Seq.from_pretrained(name, dtype=torch.float32)\n"
        "    AutoProcessor.from_pretrained(name)\n"
        "    logits = model(input_features=x['features'], decoder_input_ids=x['ids']).logits\n"
        "    found[name] = {'logits': logits.detach(), 'tokens': model.generate(x['features'], num_beams=1)}\n"
        "torch.save(found, 'out.pt')\n"
    )
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # on which the last digits depend
    command = [sys.executable, "-c", script, *networks]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=os.environ | threads)
    found = torch.load(tmp_path / "out.pt")
    for name, network in networks.items():
        assert torch.equal(found[name]["logits"], network(input_features=features, decoder_input_ids=ids).logits), name
        assert torch.equal(found[name]["tokens"], network.generate(features, num_beams=1)), name


def test_mixed_widths_are_read_by_us_and_refused_by_transformers(speech_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSpeechSeq2Seq

    out = tmp_path / "out"
    result = run(Recipe(format=SMALL, head_bits=8, rules=(Rule(match=r"fc2$", bits=16),)), speech_folder, out)
    assert {r.bits for r in result.reports} == {4, 8}
    assert len(result.plan.ignored) == 4
    network, _ = load_quantized(out)
    assert torch.equal(network.proj_out.weight, result.model.network.proj_out.weight)
    with pytest.raises((RuntimeError, AttributeError)):
        AutoModelForSpeechSeq2Seq.from_pretrained(out)
    assert "takes one width for all layers" in (out / "README.md").read_text()


def test_packed_tensors_round_trip() -> None:
    for bits in (2, 3, 4, 8):
        for symmetric in (False, True):
            weight = rtn(torch.randn(10, 96), Affine(bits=bits, group_size=32, symmetric=symmetric))
            tensors = layer_tensors("x", weight)
            again = QuantizedTensor.unpack({name.removeprefix("x."): t for name, t in tensors.items()}, weight.format)
            assert torch.equal(again.codes, weight.codes)
            assert torch.equal(again.parameters["scale"], weight.parameters["scale"])
            assert torch.equal(again.parameters["zero_point"], weight.parameters["zero_point"])


def test_decoding_by_compressed_tensors_gives_the_same_numbers() -> None:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    for bits in (2, 3, 4, 8):
        weight = rtn(torch.randn(10, 96), Affine(bits=bits, group_size=32))
        args = QuantizationArgs(num_bits=bits, type="int", symmetric=False, strategy="group", group_size=32)
        local = {name.removeprefix("x."): tensor for name, tensor in layer_tensors("x", weight).items()}
        decoded = PackedQuantizationCompressor.decompress(local, QuantizationScheme(targets=["Linear"], weights=args))
        assert torch.equal(decoded["weight"], weight.dequantize())


@pytest.fixture
def folder(speech_folder: Path, tmp_path: Path) -> Path:
    run(Recipe(method=METHODS["rtn"], format=SMALL), speech_folder, tmp_path / "out")
    return tmp_path / "out"


def test_damage_is_named(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        good = file.read_bytes()
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        if file.name == "sottovoce.json":
            bad = bytearray(good[: len(good) // 2])
        file.write_bytes(bytes(bad))
        with pytest.raises(CheckpointError, match=file.name):
            load_quantized(folder)
        file.write_bytes(good)
    load_quantized(folder)


def test_missing_file_and_unknown_version(folder: Path) -> None:
    manifest = json.loads((folder / "sottovoce.json").read_text())
    (folder / "sottovoce.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="version 99"):
        read_manifest(folder)
    manifest["files"]["../outside"] = {"bytes": 0, "sha256": "0"}
    write_sealed(folder, manifest)
    with pytest.raises(CheckpointError, match="outside"):
        read_manifest(folder)
    with pytest.raises(CheckpointError, match="not written by sottovoce"):
        read_manifest(folder.parent)


def test_missing_tensor(folder: Path) -> None:
    from safetensors.torch import save_file

    plan = read_manifest(folder).plan
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.encoder.layers.0.fc1.weight_scale"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"fc1.*weight_scale"):
        read_weights(folder, plan)


def test_existing_output_is_kept(folder: Path, speech_folder: Path) -> None:
    before = digests(folder)
    result = quantized(make_tiny(seed=1), Recipe(method=METHODS["rtn"], format=SMALL))
    with pytest.raises(OutputError, match="exists already"):
        save_quantized(result, folder)
    assert digests(folder) == before
    save_quantized(result, folder, overwrite=True)
    assert digests(folder)["model.safetensors"] != before["model.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["out"]
    with pytest.raises(OutputError, match="not a folder written by sottovoce"):
        save_quantized(result, speech_folder, overwrite=True)


def test_failed_write_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests(folder)
    result = quantized(make_tiny(seed=1), Recipe(method=METHODS["rtn"], format=SMALL))

    def full_disk(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sottovoce.checkpoint.save.save_file", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        save_quantized(result, folder, overwrite=True)
    assert digests(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_recipes_that_do_not_fit(tmp_path: Path) -> None:
    model = make_tiny()
    with pytest.raises(RecipeError, match=r"groups of 128 do not divide a row of 64; these do: 32, 64"):
        planned(model, Recipe(format=Affine(group_size=128)))
    with pytest.raises(RecipeError, match="covers no layer"):
        planned(model, Recipe(format=SMALL, rules=(Rule(match="no_such", bits=8),)))
    with pytest.raises(RecipeError, match="nothing to quantize"):
        planned(model, Recipe(format=SMALL, rules=(Rule(match="", bits=16),)))
    with pytest.raises(RecipeError, match="calibrates on speech"):
        api.quantize(model, tmp_path / "out", recipe=Recipe(format=SMALL))
    with pytest.raises(CalibrationError, match="calibrates on speech"):
        quantized(model, Recipe(format=SMALL))
    for wrong in ({"strength": 3.0}, {"ridge": 0.0}, {"damping": -1.0}, {"damping": "held-out"}):
        with pytest.raises(RecipeError):
            QEP(**wrong)
    with pytest.raises(RecipeError, match="bits = 7"):
        Rule(match="x", bits=7)
    with pytest.raises(RecipeError, match="not a regular expression"):
        Rule(match="(", bits=4)
    with pytest.raises(RecipeError, match="head bits = 7"):
        Recipe(head_bits=7)
    with pytest.raises(RecipeError, match="method 'best' is not known"):
        method_named("best")
    assert not (tmp_path / "out").exists()


def test_long_recordings_are_cut_and_said_so(tmp_path: Path) -> None:
    import soundfile

    generator = np.random.default_rng(0)
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * generator.standard_normal(16000 * (1 + 4 * i)), 16000)
    speech = prepare_speech(make_tiny(), load_data(tmp_path))
    assert speech.cut == ("1",)
    assert len(speech.recordings) >= 4
    assert max(map(len, speech.recordings)) <= 32000
    assert sum(map(len, speech.recordings)) == 16000 * 6
    assert len({s for s, i in zip(speech.speakers, speech.ids, strict=True) if i.startswith("1#")}) == 1
