"""The ONNX folder: against PyTorch step by step, and by what is in it."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sottovoce.backends.onnx_runtime.layout import DECODER, ENCODER, cache_names
from sottovoce.backends.onnx_runtime.writer import write_onnx
from sottovoce.backends.registry import BACKENDS, open_runtime, target_named
from sottovoce.backends.source import Source, open_source
from sottovoce.core.affine import Affine
from sottovoce.core.nf4 import NF4
from sottovoce.errors import ExportError
from sottovoce.evaluation.activation_rounding import int8_activations
from sottovoce.evaluation.recognizer import TorchRecognizer
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.recipe import Recipe, encoder_rule
from sottovoce.system.other_files import other_files
from sottovoce.system.versions import Processor, processor, sums_of_bytes_saturate
from tests.conftest import make_tiny, quantized
from tests.models.test_languages import make_multilingual


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Whisper, Path]:
    folder = tmp_path_factory.mktemp("onnx") / "floats"
    model = make_tiny()
    write_onnx(Source(model, {}), folder)
    return model, folder


@pytest.fixture(scope="module")
def lowbit(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedModel, Path]:
    folder = tmp_path_factory.mktemp("onnx") / "lowbit"
    result = quantized(make_tiny(layers=1), Recipe(method=method_named("rtn"), format=Affine(bits=3, group_size=32)))
    write_onnx(open_source(result), folder)
    return result, folder


def recordings(n: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(0.1 * random.standard_normal(9000 + 4000 * i)).astype(np.float32) for i in range(n)]


def session(folder: Path, name: str) -> Any:
    return onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])


def encoded(folder: Path, features: Any) -> torch.Tensor:
    return torch.from_numpy(session(folder, ENCODER).run(None, {"input_features": features["input_features"].numpy()})[0])


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def nodes(graph: Any) -> list[Any]:
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += nodes(attribute.g)
    return found


def test_names_are_those_that_readers_of_optimums_exports_expect(floats: tuple[Whisper, Path]) -> None:
    _, folder = floats
    encoder, decoder = session(folder, ENCODER), session(folder, DECODER)
    assert [i.name for i in encoder.get_inputs()] == ["input_features"]
    assert [o.name for o in encoder.get_outputs()] == ["last_hidden_state"]
    past = cache_names(2, "past_key_values")
    assert past[:3] == [
        "past_key_values.0.decoder.key",
        "past_key_values.0.decoder.value",
        "past_key_values.0.encoder.key",
    ]
    assert {i.name for i in decoder.get_inputs()} == {"input_ids", "encoder_hidden_states", "use_cache_branch", *past}
    assert [o.name for o in decoder.get_outputs()] == ["logits", *cache_names(2, "present")]
    files = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "vocab.json",
        "added_tokens.json",
    }
    assert files <= {file.name for file in folder.iterdir()}
    assert json.loads((folder / "config.json").read_text())["model_type"] == "whisper"


def test_other_readers_find_their_settings(floats: tuple[Whisper, Path]) -> None:
    """onnx-asr looks language and task up in every model; transformers.js asks for files by a `dtype`."""
    model, folder = floats
    added = json.loads((folder / "added_tokens.json").read_text())
    start, end = model.network.generation_config.decoder_start_token_id, model.network.generation_config.eos_token_id
    assert (added["<|en|>"], added["<|transcribe|>"], added["<|startoftranscript|>"], added["<|endoftext|>"]) == (start, start, start, end)
    assert json.loads((folder / "config.json").read_text())["transformers.js_config"] == {"dtype": "fp32"}


def test_each_step_of_the_decoder_equals_pytorch(floats: tuple[Whisper, Path]) -> None:
    """The prompt in one step, then tokens by the cache, against one pass over all of them without any cache."""
    model, folder = floats
    encoder, decoder = session(folder, ENCODER), session(folder, DECODER)
    features = model.features(recordings(3))
    states = encoder.run(None, {"input_features": features["input_features"].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(states), model.encode(features).states, rtol=1e-3, atol=1e-4)
    tokens = torch.randint(0, 200, (3, 9), generator=torch.Generator().manual_seed(0))
    wanted = model.network(encoder_outputs=(torch.from_numpy(states),), decoder_input_ids=tokens).logits
    past, present = cache_names(2, "past_key_values"), cache_names(2, "present")
    cache = {name: np.zeros((3, 2, 0, 32), np.float32) for name in past}
    start, got = 0, []
    for end in (2, 3, 4, 6, 9):  # also several tokens at once behind a cache
        feed = {
            "input_ids": tokens[:, start:end].numpy(),
            "encoder_hidden_states": states,
            "use_cache_branch": np.array([start > 0]),
        }
        logits, *new = decoder.run(["logits", *present], feed | cache)
        cache = {name: cache[name] if start and ".encoder." in name else value for name, value in zip(past, new, strict=True)}
        if start:
            assert all(v.shape[0] == 0 for n, v in zip(past, new, strict=True) if ".encoder." in n)
        got.append(torch.from_numpy(logits))
        start = end
    torch.testing.assert_close(torch.cat(got, 1), wanted, rtol=1e-3, atol=1e-3)


def test_transcripts_equal_those_of_generate(floats: tuple[Whisper, Path]) -> None:
    """Prompt, suppressed tokens, end, and a batch whose utterances end at different times."""
    model, folder = floats
    wanted = TorchRecognizer(model).recognize(recordings(6), None, confidence=True).recognitions
    recognizer = open_runtime("onnx", folder, 2)
    got = recognizer.recognize(recordings(6), None, confidence=True).recognitions
    assert [g.tokens for g in got] == [w.tokens for w in wanted]
    assert [g.text for g in got] == [w.text for w in wanted]
    assert [g.ended for g in got] == [w.ended for w in wanted]
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_allclose(g.log_probabilities, w.log_probabilities, atol=1e-3)


def test_the_end_may_be_a_list(floats: tuple[Whisper, Path]) -> None:
    recognizer = open_runtime("onnxruntime", floats[1], 2)
    wanted = recognizer.recognize(recordings(3), None).recognitions
    settings = recognizer.model.network.generation_config  # type: ignore[attr-defined]
    settings.eos_token_id = [settings.eos_token_id]
    assert recognizer.recognize(recordings(3), None).recognitions == wanted
    settings.eos_token_id = [*settings.eos_token_id, wanted[0].tokens[1]]
    (cut, *_) = recognizer.recognize(recordings(3), None).recognitions
    assert (cut.tokens, cut.ended) == (wanted[0].tokens[: wanted[0].tokens.index(wanted[0].tokens[1])], True)


def test_low_bit_operators_hold_every_quantized_layer_once(lowbit: tuple[QuantizedModel, Path]) -> None:
    result, folder = lowbit
    decoder = onnx.load(folder / DECODER)
    counts = Counter(node.op_type for node in nodes(onnx.load(folder / ENCODER).graph))
    assert counts["MatMulNBits"] == 6
    counts = Counter(node.op_type for node in nodes(decoder.graph))
    # Two branches; the later one computes no keys and values of the audio.
    assert counts["MatMulNBits"] == (10 + 1) + (8 + 1)
    assert counts["GatherBlockQuantized"] == 2
    codes = [t for t in decoder.graph.initializer if t.data_type == onnx.TensorProto.UINT8 and len(t.dims) == 3]
    assert len(codes) == 11  # shared by the branches, the head by the embedding
    assert all(
        a.i == 4 for n in nodes(decoder.graph) if n.op_type == "MatMulNBits" for a in n.attribute if a.name in ("bits", "accuracy_level")
    )
    assert len(result.weights) == 17


def test_low_bit_encoder_computes_what_pytorch_does_with_rounded_inputs(lowbit: tuple[QuantizedModel, Path]) -> None:
    result, folder = lowbit
    features = result.model.features(recordings(2))
    got = encoded(folder, features)
    with int8_activations(result.model, [layer.name for layer in result.model.layers()], half_scales=False):
        simulated = result.model.encode(features).states
    exact = result.model.encode(features).states
    assert distance(got, simulated) < 2e-3 < distance(got, exact) < 0.1


@pytest.fixture(scope="module")
def int8_encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedModel, Path]:
    folder = tmp_path_factory.mktemp("onnx") / "int8"
    recipe = Recipe(method=method_named("rtn"), format=Affine(bits=4, group_size=32), rules=(encoder_rule(target_named("onnx"), 8),))
    result = quantized(make_tiny(layers=1), recipe)
    write_onnx(open_source(result), folder)
    return result, folder


@pytest.fixture(scope="module")
def exact_int8_encoder(int8_encoder: tuple[QuantizedModel, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its inputs are not rounded."""
    folder = tmp_path_factory.mktemp("onnx") / "exact"
    write_onnx(open_source(int8_encoder[0]), folder, activations="float32")
    return folder


def test_an_8_bit_encoder_holds_the_very_numbers(int8_encoder: tuple[QuantizedModel, Path]) -> None:
    result, folder = int8_encoder
    graph = onnx.load(folder / ENCODER).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "DynamicQuantizeMatMul"]
    assert len(products) == 6
    assert not any(node.op_type == "MatMulNBits" for node in graph.node)
    halved = {node.output[0]: stored[node.input[0]].astype(np.float32) for node in graph.node if node.input and node.input[0] in stored}
    held = {(stored[n.input[1]] * {**stored, **halved}[n.input[2]]).T.astype(np.float32).tobytes() for n in products}
    wanted = {name: weight for name, weight in result.weights.items() if ".encoder." in name}
    assert held == {weight.dequantize().numpy().tobytes() for weight in wanted.values()}
    assert {weight.format.code_bits for name, weight in result.weights.items() if ".encoder." not in name} == {4}
    assert "DynamicQuantizeMatMul" not in {node.op_type for node in nodes(onnx.load(folder / DECODER).graph)}


def test_an_8_bit_encoder_computes_what_pytorch_does_with_inputs_rounded_to_uint8(int8_encoder: tuple[QuantizedModel, Path]) -> None:
    if sums_of_bytes_saturate(processor()):
        pytest.skip("sums of bytes saturate on this processor")
    result, folder = int8_encoder
    features = result.model.features(recordings(1))

    def rounded(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        low, high = inputs[0].min().clamp(max=0), inputs[0].max().clamp(min=0)
        scale = (high - low) / 255
        zero = (-low / scale).round()
        return (((inputs[0] / scale).round() + zero).clamp(0, 255).sub(zero) * scale,)

    exact = result.model.encode(features).states
    layers = [result.model.module(name) for name in result.weights if ".encoder." in name]
    handles = [layer.register_forward_pre_hook(rounded) for layer in layers]
    wanted = result.model.encode(features).states
    for handle in handles:
        handle.remove()
    got = encoded(folder, features)
    assert distance(got, wanted) < 2e-3 < distance(got, exact) < 0.1


def test_a_processor_whose_sums_saturate_is_named(
    int8_encoder: tuple[QuantizedModel, Path],
    exact_int8_encoder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = Processor(name="old", instruction_sets=("avx2",)), Processor(name="new", instruction_sets=("avx2", "avx_vnni"))
    assert sums_of_bytes_saturate(old)
    assert not sums_of_bytes_saturate(new)
    assert not sums_of_bytes_saturate(Processor(name="a telephone", instruction_sets=("asimd",)))
    for found, folder, said in ((old, int8_encoder[1], True), (new, int8_encoder[1], False), (old, exact_int8_encoder, False)):
        caplog.clear()
        monkeypatch.setattr("sottovoce.backends.onnx_runtime.saturation.processor", lambda found=found: found)
        with caplog.at_level(logging.WARNING, logger="sottovoce"):
            open_runtime("onnx", folder, 1)
        assert any("may saturate on this processor" in record.getMessage() for record in caplog.records) == said


def test_with_float32_activations_it_computes_what_pytorch_does(
    int8_encoder: tuple[QuantizedModel, Path], exact_int8_encoder: Path
) -> None:
    (result, _), folder = int8_encoder, exact_int8_encoder
    kinds = Counter(node.op_type for node in nodes(onnx.load(folder / ENCODER).graph))
    assert kinds["MatMulNBits"] == 6
    assert not kinds["DynamicQuantizeMatMul"]
    features = result.model.features(recordings(2))
    exact = result.model.encode(features).states
    assert distance(encoded(folder, features), exact) < 2e-4  # small tensors are stored in half precision
    (heard,) = open_runtime("onnx", folder, 1).recognize(recordings(1), None).recognitions
    assert list(heard.tokens) == result.model.decode(result.model.encode(result.model.features(recordings(1))), None)[0]


def test_no_path_of_this_machine_is_in_the_files(lowbit: tuple[QuantizedModel, Path]) -> None:
    _, folder = lowbit
    for name in (ENCODER, DECODER):
        data = (folder / name).read_bytes()
        assert b".py" not in data
        assert b"/site-packages" not in data


def test_the_names_of_all_files_are_known(lowbit: tuple[QuantizedModel, Path]) -> None:
    """Others are neither replaced nor uploaded."""
    assert other_files(lowbit[1], BACKENDS["onnxruntime"].files()) == []


def test_what_is_no_export_is_refused(tmp_path: Path, floats: tuple[Whisper, Path]) -> None:
    with pytest.raises(ExportError, match=r"has no onnx/encoder_model\.onnx"):
        open_runtime("onnx", tmp_path, 1)
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(floats[1], damaged)
    (damaged / DECODER).write_bytes((damaged / DECODER).read_bytes()[:1000])
    with pytest.raises(ExportError, match="ONNX Runtime cannot load it"):
        open_runtime("onnx", damaged, 1)


def test_nf4_runs_with_head_and_embedding(tmp_path: Path) -> None:
    """`MatMulBnb4` does not round its inputs, so the words are PyTorch's."""
    result = quantized(make_tiny(layers=1), Recipe(method=method_named("rtn"), format=NF4()))
    source = open_source(result)
    write_onnx(source, tmp_path / "nf4")
    graph = onnx.load(tmp_path / "nf4" / DECODER, load_external_data=False).graph
    kinds = Counter(node.op_type for node in nodes(graph))
    assert kinds["MatMulBnb4"] > 0
    assert not kinds["MatMulNBits"]
    runtime, torch_words = open_runtime("onnxruntime", tmp_path / "nf4", 1), TorchRecognizer(source.model)
    heard = runtime.recognize(recordings(3), None).recognitions
    assert [one.tokens for one in heard] == [one.tokens for one in torch_words.recognize(recordings(3), None).recognitions]


def test_the_language_is_detected_as_in_pytorch(tmp_path: Path) -> None:
    model, samples = make_multilingual(), recordings(5)
    write_onnx(Source(model, {}), tmp_path / "m")
    recognizer = open_runtime("onnxruntime", tmp_path / "m", 1)
    wanted = TorchRecognizer(model).recognize(samples, "auto").recognitions
    found = recognizer.recognize(samples, "auto").recognitions
    assert [(r.language, r.tokens) for r in found] == [(r.language, r.tokens) for r in wanted]
    assert len({r.language for r in found}) > 1
    assert {r.language for r in recognizer.recognize(samples, "German").recognitions} == {"de"}
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"model_type": "marian"}))
    with pytest.raises(ExportError, match=r"holds no speech recognizer in the layout of onnxruntime \(marian\)"):
        open_runtime("onnxruntime", tmp_path / "m", 1)
