"""K-quants in the files of whisper.cpp and transcribe.cpp: which types fit, what is said of others, and every number in the file."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from sottovoce import api
from sottovoce.backends.registry import target_named
from sottovoce.backends.source import open_source
from sottovoce.backends.transcribe_cpp.writer import write_gguf
from sottovoce.core.formats import NAMED
from sottovoce.errors import RecipeError
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.plan import make_plan
from sottovoce.quantization.recipe import Recipe, Rule
from tests.conftest import make_tiny, planned, quantized

RTN = METHODS["rtn"]


def test_a_whole_model_in_mixed_types_decodes_to_the_very_same_numbers(tmp_path: Path) -> None:
    rules = (
        Rule(match="self_attn.q_proj", format=NAMED["q5_k"]),
        Rule(match="fc1", format=NAMED["q6_k"]),
        Rule(match="fc2", format=NAMED["q5_1"]),
        Rule(part="head", format=NAMED["q5_0"]),
    )
    recipe = Recipe(method=RTN, format=NAMED["q4_k"], rules=rules)
    source = open_source(quantized(make_tiny(width=256, layers=1), recipe, target="transcribe.cpp"))
    types = write_gguf(source, tmp_path / "small.gguf")
    assert {kind.name for kind in types.values()} == {"Q4_K", "Q5_K", "Q6_K", "Q5_1", "Q5_0"}
    wanted = {weight.dequantize().numpy().tobytes() for weight in source.weights.values()}
    read = gguf.GGUFReader(tmp_path / "small.gguf")
    quantizations = {gguf.GGMLQuantizationType[kind.name] for kind in types.values()}
    found = [gguf.dequantize(np.array(t.data), t.tensor_type) for t in read.tensors if t.tensor_type in quantizations]
    assert len(found) == len(source.weights)
    assert {values.astype(np.float32).tobytes() for values in found} == wanted


def test_what_a_runtime_or_a_width_does_not_take_is_named() -> None:
    with pytest.raises(RecipeError, match=r"transcribe.cpp does not execute Q3_K .*; the nearest format that fits is q4_"):
        planned(make_tiny(width=256), Recipe(method=RTN, format=NAMED["q3_k"]), "transcribe.cpp")
    wide = Recipe(method=RTN, format=NAMED["q3_k"])
    with pytest.raises(
        RecipeError, match=r"Q3_K wants rows of a multiple of 256, not of 64; the nearest format that fits is mxfp4, 4.25 bits"
    ):
        make_plan(make_tiny(), wide, target_named("whisper.cpp"))
    assert len(planned(make_tiny(width=256), wide, "whisper.cpp").layers) > 0


def test_a_folder_for_one_format_is_read_again(tmp_path: Path) -> None:
    """The tied head lies under the embedding's name, whatever the target."""
    model = make_tiny(width=256, layers=1)
    result = api.quantize(model, tmp_path / "out", recipe=Recipe(method=RTN, format=NAMED["q3_k"]), target="whisper.cpp")
    again = open_source(tmp_path / "out").weights
    assert np.array_equal(again["model.decoder.embed_tokens"].dequantize(), result.weights["proj_out"].dequantize())
