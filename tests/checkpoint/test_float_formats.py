"""Folders of 4-bit floating-point formats: what `transformers` loads by compressed-tensors is what was measured, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from transformers import AutoModelForSpeechSeq2Seq

from sottovoce import api
from sottovoce.core.formats import format_named
from sottovoce.core.rtn import rtn
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe, Rule
from tests.conftest import make_tiny


@pytest.mark.parametrize(("name", "preset"), [("mxfp4", "MXFP4A16"), ("nvfp4", "NVFP4A16"), ("nvfp4_ggml", "NVFP4A16")])
def test_compressed_tensors_decodes_the_same_values(name: str, preset: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 128) * torch.rand(16, 8).repeat_interleave(16, -1)
    quantized = rtn(weight, format_named(name))
    layout = f"{name.removesuffix('_ggml')}-pack-quantized"
    found = BaseCompressor.get_value_from_registry(layout).decompress(quantized.pack(), preset_name_to_scheme(preset, ["Linear"]))
    assert torch.equal(found["weight"].float(), quantized.dequantize())


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_a_folder_loads_in_transformers(name: str, speech_folder: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out", make_tiny()
    recipe = Recipe(method=METHODS["fade"], format=format_named(name))
    result = api.quantize(model, out, recipe=recipe, calibration=speech_folder)
    described = json.loads((out / "config.json").read_text())["quantization_config"]
    assert described["format"] == f"{name}-pack-quantized"
    network, report = AutoModelForSpeechSeq2Seq.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    for parameter, tensor in result.model.network.named_parameters():
        assert torch.equal(network.get_parameter(parameter), tensor), parameter
    assert api.verify(out).layers == len(result.plan.layers)
    assert torch.equal(api.load(out).network.proj_out.weight, network.proj_out.weight)


def test_a_folder_of_several_layouts_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = Recipe(method=METHODS["rtn"], format=format_named("mxfp4"), rules=(Rule(part="encoder", format=format_named("int8")),))
    api.quantize(make_tiny(), out, recipe=recipe)
    described = json.loads((out / "config.json").read_text())["quantization_config"]
    assert described["format"] == "mixed-precision"
    assert {group["format"] for group in described["config_groups"].values()} == {"pack-quantized", "mxfp4-pack-quantized"}
    assert "dequantize" not in described
    assert api.verify(out).layers > 0


def test_a_folder_for_a_runtime_of_one_format_loads_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = api.quantize(make_tiny(), out, recipe=Recipe(method=METHODS["rtn"], format=format_named("iq4_nl")), target="whisper.cpp")
    assert torch.equal(api.load(out).network.proj_out.weight, result.model.network.proj_out.weight)
