"""Formats by name: in commands, rules, plans and benches; what each costs, who holds it, and what is said where it does not fit."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sottovoce import api
from sottovoce.backends.formats import known_formats
from sottovoce.backends.registry import BACKENDS, target_named
from sottovoce.bench.plan import plan_from
from sottovoce.cli.main import main
from sottovoce.core.affine import Affine
from sottovoce.core.error_metrics import code_entropy
from sottovoce.core.formats import FORMATS, NAMED, format_named, name_of
from sottovoce.core.rtn import rtn
from sottovoce.errors import DataError, RecipeError
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.plan import Plan, make_plan
from sottovoce.quantization.recipe import Recipe, Rule, rule_named
from sottovoce.system.plain_data import from_plain, to_plain
from tests.conftest import make_tiny, planned

RTN = METHODS["rtn"]


def test_every_name_is_a_format_that_files_know() -> None:
    for name, number_format in NAMED.items():
        assert name == name.lower()
        assert format_named(name.upper()) is number_format
        assert FORMATS[number_format.name] is type(number_format)
        assert from_plain(type(number_format), to_plain(number_format)) == number_format
    with pytest.raises(RecipeError, match=r"format 'q9_0' is not known; choose one of .*q4_0"):
        format_named("q9_0")
    assert name_of(Affine(bits=4, symmetric=True)) == "q4_0"
    assert name_of(Affine(bits=4, group_size=64)) is None


@pytest.mark.parametrize("name", NAMED)
def test_bits_per_weight_are_those_of_the_stored_tensors(name: str) -> None:
    width = 3072
    weight = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    quantized = rtn(weight, NAMED[name])
    stored = quantized.codes.numel() * NAMED[name].code_bits
    known = {one.name: one for one in known_formats()}[name]
    assert known.bits_per_weight == NAMED[name].bits_per_weight(width) >= stored / weight.numel()
    # Nothing that the runtime stores is left out: its own blocks have the same size, unless codes are widened.
    for holder in known.holders:
        if holder.backend in ("whisper.cpp", "transcribe.cpp") and not holder.widened:
            from sottovoce.backends.ggml_blocks import to_blocks

            assert to_blocks("w", quantized)[1].nbytes * 8 / weight.numel() == known.bits_per_weight


@pytest.mark.parametrize("name", NAMED)
def test_weights_may_have_any_leading_dimensions(name: str) -> None:
    """Folds and candidates are quantized in one piece."""
    number_format, width = NAMED[name], 512
    weight = 0.1 * torch.randn(2, 3, 4, width, generator=torch.Generator().manual_seed(0))
    parameters = number_format.fit(weight)
    decoded = number_format.decode(number_format.encode(weight, parameters), parameters)
    assert decoded.shape == weight.shape
    for i, j in itertools.product(range(2), range(3)):
        one = {key: tensor[i, j] for key, tensor in parameters.items()}
        alone = number_format.fit(weight[i, j])
        assert all(torch.equal(one[key], alone[key]) for key in alone)
        assert torch.equal(decoded[i, j], number_format.decode(number_format.encode(weight[i, j], one), one))


@pytest.mark.parametrize("name", NAMED)
def test_the_largest_step_is_the_widest_gap_between_levels(name: str) -> None:
    number_format, width = NAMED[name], 512
    quantized = rtn(torch.randn(2, width, generator=torch.Generator().manual_seed(1)), number_format)
    levels = [number_format.decode(torch.full((2, width), code), quantized.parameters) for code in range(1 << number_format.code_bits)]
    gaps = [(above - below).abs() for below, above in itertools.pairwise(levels)]
    torch.testing.assert_close(number_format.largest_step(quantized.parameters, width), torch.stack(gaps).amax(0), rtol=1e-4, atol=1e-6)


def test_holders_are_what_the_records_say() -> None:
    for known in known_formats():
        names = {holder.backend for holder in known.holders}
        assert "torch" in names
        for backend in BACKENDS.values():
            assert (backend.target.misfit(NAMED[known.name], "encoder", 3072) is None) == (backend.name in names), (
                known.name,
                backend.name,
            )
        for holder in known.holders:
            target = BACKENDS[holder.backend].target
            assert target.misfit(NAMED[known.name], "encoder", holder.row_multiple) is None
            assert holder.row_multiple == 1 or target.misfit(NAMED[known.name], "encoder", holder.row_multiple // 2) is not None


def test_the_command_lists_them() -> None:
    printed = json.loads(CliRunner().invoke(main, ["formats", "--json"]).stdout)
    assert {row["name"] for row in printed} == NAMED.keys()
    assert [row["bits_per_weight"] for row in printed] == sorted((row["bits_per_weight"] for row in printed), reverse=True)
    shown = CliRunner().invoke(main, ["formats"], env={"COLUMNS": "200"}).stdout
    assert all(name in shown for name in NAMED)


def test_names_reach_the_plan_by_option_rule_and_file(tmp_path: Path) -> None:
    model, out = make_tiny(), tmp_path / "model"
    model.network.save_pretrained(out)
    model.processor.save_pretrained(out)
    arguments = ["quantize", str(out), str(tmp_path / "out"), "--method", "rtn", "--target", "torch", "--dry-run", "--json"]
    given = ["--format", "q5_0", "--head-format", "q8_0", "--encoder-format", "int6", "--rule", "decoder.*fc1", "q4_0"]
    result = CliRunner().invoke(main, [*arguments, *given])
    assert result.exit_code == 0, result.stderr
    plan = from_plain(Plan, json.loads(result.stdout))
    names = {layer.name: name_of(layer.format) for layer in plan.layers}
    assert names["proj_out"] == "q8_0"
    assert names["model.encoder.layers.0.fc1"] == "int6"
    assert names["model.decoder.layers.0.fc1"] == "q4_0"
    assert names["model.decoder.layers.0.fc2"] == "q5_0"
    edited = json.loads(result.stdout)
    edited["layers"][0]["format"] = "q8_0"
    assert name_of(from_plain(Plan, edited).layers[0].format) == "q8_0"
    edited["layers"][0]["format"] = "q9_0"
    with pytest.raises(DataError, match=r"layers\[0\]\.format: 'q9_0' is not known; wanted one of int2"):
        from_plain(Plan, edited)
    clash = CliRunner().invoke(main, [*arguments, "--format", "q4_0", "--bits", "3"])
    assert clash.exit_code == 2
    assert "--bits and --format exclude each other" in clash.stderr
    unknown = CliRunner().invoke(main, [*arguments, "--rule", "fc1", "q9_0"])
    assert unknown.exit_code == 2
    assert "'q9_0' is neither a number of bits nor a format" in unknown.stderr


def test_rules_by_name() -> None:
    assert rule_named("fc1", "Q4_0") == Rule(match="fc1", format=NAMED["q4_0"])
    assert rule_named("fc1", "8") == Rule(match="fc1", bits=8)
    assert from_plain(Rule, {"match": "fc1", "format": "q4_0"}) == Rule(match="fc1", format=NAMED["q4_0"])


def test_a_bench_names_formats() -> None:
    content = {
        "models": ["bundled:base"], "methods": ["rtn"], "bits": [3], "formats": ["q4_0", "q5_0"], "seeds": [0], "data": ["x"],
        "head_bits": "same",
    }  # fmt: skip
    found = plan_from(content).quantizations()
    assert [(one.bits, one.format) for one in found] == [(3, None), (4, "q4_0"), (5, "q5_0")]
    assert found[1].recipe.format == NAMED["q4_0"]
    assert found[1].recipe.head_bits is None
    with pytest.raises(RecipeError, match="format 'q9' is not known"):
        plan_from(content | {"formats": ["q9"]})


def test_what_does_not_fit_names_the_nearest_that_does() -> None:
    model = make_tiny(width=48)  # rows of 48 and 96
    with pytest.raises(RecipeError, match="groups of 32 do not divide a row of 48; these do: a whole row"):
        planned(model, Recipe(method=RTN, format=NAMED["q4_0"]))
    with pytest.raises(RecipeError, match=r"whisper.cpp has no blocks for .*; the nearest format that fits is q5_0, 5.5 bits per weight"):
        make_plan(make_tiny(), Recipe(method=RTN, format=Affine(bits=5)), target_named("whisper.cpp"))


def test_entropy_of_codes() -> None:
    even = torch.arange(16, dtype=torch.uint8).repeat(4, 2)
    assert code_entropy(even) == pytest.approx(4)
    assert code_entropy(torch.zeros(3, 8, dtype=torch.uint8)) == 0
    assert code_entropy(torch.tensor([[0, 1, 1, 1]], dtype=torch.uint8)) == pytest.approx(0.811278, abs=1e-6)


def test_inspect_shows_format_and_entropy(tmp_path: Path) -> None:
    api.quantize(make_tiny(), tmp_path / "out", recipe=Recipe(method=RTN, format=NAMED["q5_0"]), target="torch")
    for report in api.inspect(tmp_path / "out").layers:
        assert 3 < (report.code_entropy or 0) <= 5
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "out")], env={"COLUMNS": "250"}).stdout
    assert "entropy" in shown
    assert "q5_0" in shown
