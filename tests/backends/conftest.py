"""A small random Whisper with OpenAI's vocabulary and front end, which whisper.cpp insists on."""

from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from sottovoce.backends.source import Source
from sottovoce.core.affine import Affine
from sottovoce.models.load import load_model
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.recipe import Recipe
from tests.conftest import quantized


@pytest.fixture(scope="session")
def openai_like() -> Whisper:
    return small_openai(layers=4)


def small_openai(layers: int, positions: int = 448) -> Whisper:
    """A random Whisper of width 64 with the vocabulary and front end of tiny.en; `positions`: of its decoder, prompt included."""
    original = load_model("bundled:tiny.en")
    torch.manual_seed(0)
    config = WhisperConfig(
        **(original.network.config.to_dict() | {
            "d_model": 64, "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": 1, "decoder_attention_heads": 1,
            "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "init_std": 0.3, "max_target_positions": positions,
        })
    )  # fmt: skip
    network = WhisperForConditionalGeneration(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    network.generation_config = original.network.generation_config
    return Whisper(network, original.processor, "openai/small-random.en")


def rounded(model: Whisper, **grid: object) -> QuantizedModel:
    """Plain rounding: the codes do not matter here, only that they arrive."""
    settings = {"bits": 4, "group_size": 32, "symmetric": True} | grid
    return quantized(model, Recipe(method=method_named("rtn"), format=Affine(**settings)))  # type: ignore[arg-type]


def assert_tensors_arrive(tensors: Mapping[str, Any], source: Source, called: Callable[[str], str]) -> None:
    """Every parameter stands in a GGUF file with its very numbers: codes decoded, vectors in float32, other matrices in float16."""
    for name, array in source.floats().items():
        found = tensors[called(name)]
        module = name.removesuffix(".weight")
        if module in source.weights:
            assert np.array_equal(gguf.dequantize(found.data, found.tensor_type), source.weights[module].dequantize().numpy()), name
        else:
            kept = array.astype(np.float32 if array.ndim < 2 else np.float16)
            assert found.data.dtype == kept.dtype, name
            assert np.array_equal(found.data.reshape(array.shape), kept), name
