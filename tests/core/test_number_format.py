"""The interface is enough: a format that only this file knows goes through every method, a folder, a check and an evaluation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from sottovoce import api
from sottovoce.core.formats import FORMATS
from sottovoce.core.number_format import NumberFormat, Parameters
from sottovoce.core.rtn import rtn
from sottovoce.errors import CheckpointError, RecipeError
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.plan_file import read_plan, write_plan
from sottovoce.quantization.recipe import Recipe, Rule
from tests.conftest import make_tiny, planned


@dataclass(frozen=True, kw_only=True)
class PowersOfTwo(NumberFormat):
    """A sign and one of `2^(bits-1)` powers of two, times a float scale for each row."""

    name: ClassVar[str] = "powers of two"
    bits: int = 4

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def magnitudes(self) -> int:
        return 1 << (self.bits - 1)

    def block_size(self, in_features: int) -> int:
        return in_features

    def bits_per_weight(self, in_features: int) -> float:
        return self.bits + 32 / in_features

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        del importance
        return {"scale": weight.float().abs().amax(-1, keepdim=True).clamp(min=1e-12)}

    def expand(self, parameters: Parameters, in_features: int) -> tuple[Tensor, ...]:
        return (parameters["scale"].float().expand(*parameters["scale"].shape[:-1], in_features),)

    def nearest(self, weight: Tensor, *expanded: Tensor) -> Tensor:
        exponent = torch.round(-torch.log2((weight / expanded[0]).abs().clamp(min=1e-30))).clamp(0, self.magnitudes - 1)
        return exponent + self.magnitudes * (weight < 0)

    def values(self, codes: Tensor, *expanded: Tensor) -> Tensor:
        negative = codes >= self.magnitudes
        size = torch.exp2(-(codes - self.magnitudes * negative)) * expanded[0]
        return torch.where(negative, -size, size)

    def check(self, parameters: Parameters, out_features: int, in_features: int) -> None:
        del in_features
        if parameters.keys() != {"scale"} or parameters["scale"].shape != (out_features, 1) or not bool((parameters["scale"] > 0).all()):
            raise CheckpointError(f"its scales are not a positive one for each of {out_features} rows")


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, PowersOfTwo.name, PowersOfTwo)


@pytest.mark.parametrize("method", ["rtn", "gptq", "qep", "awq", "fade"])
def test_a_format_of_its_own_goes_all_the_way(method: str, speech_folder: Path, tmp_path: Path) -> None:
    out, number_format = tmp_path / "out", PowersOfTwo()
    recipe = Recipe(method=METHODS[method], format=number_format)
    result = api.quantize(make_tiny(), out, recipe=recipe, calibration=speech_folder, target="torch")
    assert {layer.format for layer in result.plan.layers} == {number_format}
    again = api.load(out)
    for name, parameter in result.model.network.named_parameters():
        assert torch.equal(again.network.get_parameter(name), parameter), name
    assert api.verify(out).layers == len(result.plan.layers)
    assert api.inspect(out).plan == result.plan
    assert api.evaluate(out, speech_folder).score.words > 0
    described = json.loads((out / "config.json").read_text())["quantization_config"]
    assert described == {"quant_method": "sottovoce", "formats": ["powers of two"]}
    with pytest.raises(RecipeError, match="compressed-tensors holds affine formats"):
        api.quantize(make_tiny(), tmp_path / "other", recipe=recipe, calibration=speech_folder)


def test_values_are_the_nearest_powers() -> None:
    weight = torch.tensor([[1.0, -0.5, 0.26, -0.01, 0.0]])
    got = rtn(weight, PowersOfTwo(bits=3)).dequantize()
    assert got.tolist() == [[1.0, -0.5, 0.25, -0.125, 0.125]]  # there is no zero, and nothing below 2^-3


def test_damage_to_its_parameters_is_found(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    out = tmp_path / "out"
    api.quantize(make_tiny(), out, recipe=Recipe(method=METHODS["rtn"], format=PowersOfTwo()), target="torch")
    tensors = load_file(out / "model.safetensors")
    tensors["model.encoder.layers.0.fc1.weight_scale"] *= -1
    save_file(tensors, out / "model.safetensors")
    from sottovoce.checkpoint.load import read_weights

    with pytest.raises(CheckpointError, match=r"layers\.0\.fc1.*not a positive one"):
        read_weights(out, json_plan(out))


def json_plan(folder: Path) -> object:
    from sottovoce.quantization.plan import Plan
    from sottovoce.system.plain_data import from_plain

    return from_plain(Plan, json.loads((folder / "sottovoce.json").read_text())["plan"])


def test_a_plan_in_a_file_is_the_same_and_is_carried_out(tmp_path: Path) -> None:
    model = make_tiny()
    rules = (Rule(part="encoder", format=PowersOfTwo(bits=3)), Rule(match="decoder.*fc1", bits=8))
    plan = planned(model, Recipe(method=METHODS["rtn"], rules=rules))
    write_plan(tmp_path / "plan.json", plan)
    given = read_plan(tmp_path / "plan.json")
    assert given == plan
    result = api.quantize(model, tmp_path / "out", recipe=Recipe(method=METHODS["rtn"]), plan=given)
    assert result.plan == plan
    assert {type(layer.format) for layer in plan.layers if layer.part == "encoder"} == {PowersOfTwo}
    assert api.inspect(tmp_path / "out").plan == plan


def test_plans_that_do_not_fit_are_named(tmp_path: Path) -> None:
    plan = planned(make_tiny(), Recipe(method=METHODS["rtn"]))
    with pytest.raises(RecipeError, match="does not have the layer"):
        api.quantize(make_tiny(layers=1), tmp_path / "out", recipe=Recipe(method=METHODS["rtn"]), plan=plan)
    with pytest.raises(RecipeError, match="shape"):
        api.quantize(make_tiny(width=128), tmp_path / "out", recipe=Recipe(method=METHODS["rtn"]), plan=plan)
    with pytest.raises(RecipeError, match="is made for the target torch, and onnxruntime was asked for"):
        api.quantize(make_tiny(), tmp_path / "out", recipe=Recipe(method=METHODS["rtn"]), plan=plan, target="onnxruntime")
    (tmp_path / "plan.json").write_text('{"target": "torch", "layers": [{"name": "x"}]}')
    with pytest.raises(RecipeError, match="is not a plan"):
        read_plan(tmp_path / "plan.json")
