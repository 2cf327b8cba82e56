"""The true widths of every published Whisper, on random weights: one layer of each through methods and exports."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from sottovoce.backends.onnx_runtime.layout import ENCODER
from sottovoce.backends.onnx_runtime.writer import write_onnx
from sottovoce.backends.registry import target_named
from sottovoce.backends.source import open_source
from sottovoce.backends.transcribe_cpp.writer import write_gguf
from sottovoce.core.affine import Affine
from sottovoce.errors import RecipeError
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.calibration_set import CalibrationSpeech
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe, Rule
from tests.conftest import make_tiny, planned, quantized

SIZES = {"tiny": (384, 80), "base": (512, 80), "small": (768, 80), "medium": (1024, 80), "large-v3": (1280, 128)}


def make_size(name: str, *, encoder_layers: int = 1, decoder_layers: int = 1) -> Whisper:
    """Width, heads, feed-forward width and mel bins as published; 2 s of audio and the tiny model's vocabulary."""
    width, mels = SIZES[name]
    small = make_tiny()
    torch.manual_seed(0)
    config = WhisperConfig.from_dict(
        small.network.config.to_dict()
        | {
            "d_model": width, "num_mel_bins": mels, "encoder_layers": encoder_layers, "decoder_layers": decoder_layers,
            "encoder_attention_heads": width // 64, "decoder_attention_heads": width // 64, "encoder_ffn_dim": 4 * width,
            "decoder_ffn_dim": 4 * width, "init_std": 0.05,
        }
    )  # fmt: skip
    network = WhisperForConditionalGeneration(config).eval().requires_grad_(False)
    network.generation_config = small.network.generation_config
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=2)
    return Whisper(network, WhisperProcessor(extractor, small.processor.tokenizer), name)


def speech(count: int = 4) -> CalibrationSpeech:
    random = np.random.default_rng(0)
    recordings = tuple((0.1 * random.standard_normal(30_000)).astype(np.float32) for _ in range(count))
    return CalibrationSpeech(
        ids=tuple(f"u{i}" for i in range(count)), recordings=recordings, transcripts=((40, 50, 60, 70),) * count,
        languages=(None,) * count, speakers=(None,) * count, cut=(), seconds=1.9 * count, label_time_s=0.0,
    )  # fmt: skip


CASES = [("tiny", "awq", 128), ("tiny", "fade", 128), ("base", "qep", 64), ("small", "fade", 128), ("medium", "rtn", 128),
         ("large-v3", "gptq", 128)]  # fmt: skip


@pytest.mark.parametrize(("size", "method", "group"), CASES)
def test_every_width_through_a_method_and_into_gguf(size: str, method: str, group: int, tmp_path: Path) -> None:
    model = make_size(size)
    names = {layer.name for layer in model.layers()}
    changes, rules, number_format = dict[str, Any](), tuple[Rule, ...](), Affine(bits=3, group_size=group)
    if size == "large-v3":
        changes = {"damping": 0.1}  # 5,120 channels are solved in float32
        number_format = replace(number_format, observer="minmax")  # for the time
    if (size, method) != ("tiny", "fade"):  # one layer of each shape, for the time
        names = {"model.encoder.layers.0.self_attn.q_proj", "model.decoder.layers.0.fc1", "model.decoder.layers.0.fc2"}
        rules = (Rule(match=rf"^(?!({'|'.join(names)})$)", bits=16),)
    recipe = Recipe(method=method_named(method, **changes), format=number_format, rules=rules)
    result = quantized(model, recipe, speech())
    assert set(result.weights) == names
    features = model.features([speech(1).recordings[0]])
    outputs = [m.encode(features).states for m in (model, result.model)]
    assert bool(torch.isfinite(outputs[1]).all())
    assert not torch.equal(*outputs)
    recipe = Recipe(method=method_named("rtn"), format=target_named("gguf").format(observer="minmax"))
    kinds = write_gguf(open_source(quantized(model, recipe)), tmp_path / "m.gguf")
    assert {kind.name for kind in kinds.values()} == {"Q4_0"}


def test_large_v3_into_onnx(tmp_path: Path) -> None:
    import onnxruntime

    model = make_size("large-v3")
    result = quantized(model, Recipe(method=method_named("rtn"), format=target_named("onnx").format(observer="minmax")))
    write_onnx(open_source(result), tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / ENCODER), providers=["CPUExecutionProvider"])
    features = model.features([speech(1).recordings[0]])["input_features"]
    (states,) = session.run(None, {"input_features": features.numpy()})
    wanted = result.model.encode({"input_features": features}).states
    error = float((torch.from_numpy(states) - wanted).norm() / wanted.norm())
    assert error < 0.05  # inputs of its products are rounded to 8 bits


@pytest.mark.parametrize(("encoder", "decoder"), [(4, 1), (1, 2)], ids=["like turbo", "like distil"])
def test_halves_of_unequal_depth(encoder: int, decoder: int) -> None:
    model = make_size("tiny", encoder_layers=encoder, decoder_layers=decoder)
    plan = planned(model, Recipe(format=Affine(group_size=64)))
    assert len(plan.layers) == 6 * encoder + 10 * decoder + 1
    result = quantized(model, Recipe(method=method_named("gptq"), format=Affine(group_size=64, observer="minmax")), speech())
    assert [report.part for report in result.reports].count("encoder") == 6 * encoder


@pytest.mark.parametrize("width", [288, 416])
def test_moonshines_widths_want_groups_of_32(width: int) -> None:
    with pytest.raises(RecipeError, match="these do: 32, a whole row"):
        Affine(group_size=128).block_size(width)
    assert Affine(group_size=32).block_size(width) == 32
