"""Plans: what rules and families make of a recipe, and which plans do not fit."""

from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce.backends.registry import target_named
from sottovoce.core.affine import Affine
from sottovoce.core.affine_minimum import AffineMinimum
from sottovoce.core.formats import format_named
from sottovoce.errors import OutputError, RecipeError
from sottovoce.models.layers import Layer
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.plan import Plan, PlannedLayer, check_plan, check_target, make_plan
from sottovoce.quantization.plan_file import read_plan, write_plan
from sottovoce.quantization.recipe import Recipe, Rule, encoder_rule, rule_named
from sottovoce.quantization.target import Target
from tests.conftest import make_tiny

FOUR, EIGHT = Affine(bits=4, group_size=32), Affine(bits=8, group_size=32)
TORCH = target_named("torch")


@pytest.fixture(scope="module")
def model() -> SpeechModel:
    return make_tiny(layers=1)


def planned(name: str, number_format: Affine, rows: int, columns: int = 32) -> PlannedLayer:
    return PlannedLayer(name=name, part="encoder", format=number_format, shape=(rows, columns))


def test_a_plan_counts_by_weights() -> None:
    layers = (planned("a", FOUR, 10), planned("b", EIGHT, 8, 64), planned("c", FOUR, 5))
    plan = Plan(target="torch", layers=layers)
    assert (plan.weights, [layer.weights for layer in layers]) == (10 * 32 + 8 * 64 + 5 * 32, [320, 512, 160])
    assert plan.formats == (FOUR, EIGHT)
    assert plan.main_format == EIGHT  # of fewer layers, but of more weights
    bits = [4 + 20 / 32, 8 + 24 / 32]
    assert plan.bits_per_weight == pytest.approx((480 * bits[0] + 512 * bits[1]) / 992)
    assert ("a" in plan, "z" in plan) == (True, False)
    assert plan.format("b") == EIGHT
    assert Plan(target="torch", layers=(*layers, planned("d", FOUR, 2))).main_format == FOUR


def test_later_rules_win_and_a_group_size_stays_until_another_is_given(model: SpeechModel) -> None:
    rules = (
        Rule(part="encoder", bits=8, group_size=64),
        Rule(part="encoder", match="fc", bits=3),
        Rule(match="fc2$", bits=16),
        Rule(match="decoder.*fc1", format=EIGHT),
        Rule(match="decoder.*fc1", bits=5),
    )
    plan = make_plan(model, Recipe(format=FOUR, head_bits=8, rules=rules), TORCH)
    assert plan.format("model.encoder.layers.0.self_attn.q_proj") == Affine(bits=8, group_size=64)
    assert plan.format("model.encoder.layers.0.fc1") == Affine(bits=3, group_size=64)
    assert plan.format("model.decoder.layers.0.self_attn.q_proj") == FOUR
    assert plan.format("model.decoder.layers.0.fc1") == Affine(bits=5, group_size=32)
    assert plan.format("proj_out") == EIGHT
    assert plan.ignored == ("model.encoder.layers.0.fc2", "model.decoder.layers.0.fc2")
    head = next(layer for layer in plan.layers if layer.name == "proj_out")
    assert (head.tie_group, head.shape) == ("model.decoder.embed_tokens", tuple(model.module("proj_out").weight.shape))
    assert {layer.tie_group for layer in plan.layers if layer is not head} == {None}


def test_layers_keep_the_bits_that_their_family_wants_unless_a_rule_names_them(model: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [replace(layer, min_bits=4) if layer.name.endswith("fc1") else layer for layer in model.layers()]
    monkeypatch.setattr(model, "layers", lambda: wanted)
    three = Affine(bits=3, group_size=32)
    plan = make_plan(model, Recipe(format=three, rules=(Rule(match="decoder.*fc1", bits=2),)), TORCH)
    assert plan.format("model.encoder.layers.0.fc1") == FOUR
    assert plan.format("model.decoder.layers.0.fc1") == Affine(bits=2, group_size=32)
    assert plan.format("model.encoder.layers.0.fc2") == three
    assert make_plan(model, Recipe(format=FOUR), TORCH).formats == (FOUR,)
    other = make_plan(model, Recipe(format=AffineMinimum(bits=3)), TORCH)
    assert other.format("model.encoder.layers.0.fc1") == TORCH.format(bits=4)


def test_what_no_plan_can_be_made_of_is_refused(model: SpeechModel) -> None:
    for recipe, said in (
        (Recipe(rules=(Rule(match="nothing", bits=4),)), "names with 'nothing' covers no layer of tiny; layers look like 'model"),
        (Recipe(rules=(Rule(match="", bits=16),)), "leaves every layer in floating point"),
        (Recipe(format=AffineMinimum(), head_bits=8), "head_bits gives bits, and the recipe's format is '4 bits, groups of 32 with"),
        (Recipe(format=AffineMinimum(), rules=(Rule(part="head", bits=8),)), "the rule for the part 'head' gives bits"),
        (Recipe(format=Affine(group_size=128)), "groups of 128 do not divide a row of 64; these do: 32, 64, a whole row"),
    ):
        with pytest.raises(RecipeError, match=said):
            make_plan(model, recipe, TORCH)
    assert make_plan(model, Recipe(format=AffineMinimum(), head_bits=16), TORCH).ignored == ("proj_out",)


def test_a_plan_of_another_model_or_target_is_refused(model: SpeechModel) -> None:
    plan = make_plan(model, Recipe(format=FOUR), TORCH)
    check_plan(plan, model, TORCH)
    first, *rest = plan.layers
    for other, said in (
        (replace(plan, layers=tuple(rest)), "the model has, and the plan does not name the layer"),
        (replace(plan, layers=(*plan.layers, replace(first, name="zzz"))), "the model does not have the layer 'zzz'"),
        (replace(plan, layers=(*plan.layers, first)), "names a layer twice"),
        (replace(plan, ignored=(first.name,)), "names a layer twice"),
        (replace(plan, layers=(replace(first, shape=(1, 32)), *rest)), r"is for a layer of shape \(1, 32\); the model's is \(64, 64\)"),
        (replace(plan, target="onnxruntime"), "made for the target onnxruntime, and torch was asked for"),
    ):
        with pytest.raises(RecipeError, match=said):
            check_plan(other, model, TORCH)
    check_plan(replace(plan, layers=tuple(rest), ignored=(first.name,)), model, TORCH)


def one_format(*, beside_float: bool) -> Target:
    return Target(name="one", refusal=lambda *_: None, one_format=True, beside_float=beside_float)


def test_a_target_of_one_format_takes_one_and_says_what_came() -> None:
    same = Plan(target="one", layers=(planned("a", FOUR, 4), planned("b", FOUR, 4)))
    mixed = replace(same, layers=(planned("a", FOUR, 4), planned("b", EIGHT, 4)))
    check_target(same, one_format(beside_float=False))
    check_target(replace(same, ignored=("c",)), one_format(beside_float=True))
    check_target(replace(mixed, ignored=("c",)), replace(one_format(beside_float=False), one_format=False))
    for plan, beside_float, found in (
        (mixed, True, "4 bits, groups of 32 and 8 bits, groups of 32$"),
        (replace(same, ignored=("c",)), False, "4 bits, groups of 32 and floating point$"),
    ):
        with pytest.raises(RecipeError, match=f"one holds one format for all layers, head included; the plan has {found}"):
            check_target(plan, one_format(beside_float=beside_float))


def test_a_refusal_names_the_nearest_format_that_fits() -> None:
    def refusal(number_format: object, _part: object, _columns: int) -> str | None:
        return None if number_format in (format_named("q8_0"), format_named("q5_0")) else "is not held"

    target = Target(name="few", refusal=refusal)  # type: ignore[arg-type]
    plan = Plan(target="few", layers=(planned("a", FOUR, 4),))
    with pytest.raises(RecipeError, match=r"^a: is not held; the nearest format that fits is q5_0, 5\.5 bits per weight$"):
        check_target(plan, target)
    with pytest.raises(RecipeError, match=r"nearest format that fits is q8_0, 8\.5 bits per weight$"):
        check_target(replace(plan, layers=(planned("a", Affine(bits=8, group_size=64), 4, 64),)), target)
    with pytest.raises(RecipeError, match="^a: is not held$"):
        check_target(plan, Target(name="none", refusal=lambda *_: "is not held"))


def test_the_affine_grid_of_a_target() -> None:
    plain = Target(name="plain", refusal=lambda *_: None)
    assert plain.format(bits=3, group_size=64) == Affine(bits=3, group_size=64)
    assert plain.format(symmetric=True, observer="minmax") == Affine(symmetric=True, observer="minmax")
    assert replace(plain, symmetric=True).format() == Affine(symmetric=True)
    assert replace(plain, symmetric=True).format(symmetric=False) == Affine()
    half = replace(plain, float16_min=True)
    assert [half.format(bits=bits).symmetric for bits in (4, 5)] == [False, True]  # type: ignore[union-attr]
    assert half.format().float16_min  # type: ignore[union-attr]
    real = replace(plain, real_minimum=True)
    assert real.format(bits=5, group_size=64) == AffineMinimum(bits=5, group_size=64)
    assert real.format(symmetric=True) == Affine(symmetric=True)
    with pytest.raises(RecipeError, match="plain has no groups of a whole row"):
        real.format(group_size=None)
    with pytest.raises(RecipeError, match="not by 'minmax'; leave the observer out"):
        real.format(observer="minmax")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bits": 4}, "a rule names no layers"),
        ({"part": "tail", "bits": 4}, "rule for part 'tail': parts are encoder"),
        ({"part": "head"}, "rule for the part 'head': give either a format or bits"),
        ({"part": "head", "bits": 4, "format": FOUR}, "give either a format or bits"),
        ({"part": "head", "bits": 7}, "bits = 7 is not supported; choose one of"),
        ({"match": "(", "bits": 4}, r"rule '\(' is not a regular expression"),
    ],
)
def test_rules_that_say_too_little_or_too_much(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Rule(**settings)  # type: ignore[arg-type]


def test_a_rule_covers_by_part_and_name() -> None:
    head, first = Layer("proj_out", "head", "tokens"), Layer("encoder.fc1", "encoder", "frames")
    for rule, covers, title in (
        (Rule(part="head", bits=16), (True, False), "the part 'head'"),
        (Rule(match="fc", bits=4), (False, True), "names with 'fc'"),
        (Rule(part="encoder", match="out", bits=4), (False, False), "the part 'encoder' and names with 'out'"),
        (Rule(part="encoder", match="fc", bits=4), (False, True), "the part 'encoder' and names with 'fc'"),
        (Rule(match="", bits=4), (True, True), "names with ''"),
    ):
        assert (rule.covers(head), rule.covers(first), rule.title) == (*covers, title)
    assert rule_named("fc", "5") == Rule(match="fc", bits=5)
    assert rule_named("fc", "Q4_0") == Rule(match="fc", format=format_named("q4_0"))
    with pytest.raises(RecipeError, match="'five' is neither a number of bits nor a format"):
        rule_named("fc", "five")
    rows = replace(TORCH, int8_rows=True)
    assert encoder_rule(rows, 8) == Rule(part="encoder", bits=8, group_size=None, symmetric=True)
    assert encoder_rule(rows, 4) == Rule(part="encoder", bits=4)
    assert encoder_rule(replace(TORCH, int8_rows=False), 8) == Rule(part="encoder", bits=8)


def test_a_plan_survives_its_file_and_what_is_none_is_refused(tmp_path: Path) -> None:
    plan = Plan(target="torch", layers=(planned("a", FOUR, 4), replace(planned("b", EIGHT, 4), tie_group="c")), ignored=("d",))
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    with pytest.raises(OutputError, match="the plan cannot be written"):
        write_plan(tmp_path, plan)
    with pytest.raises(RecipeError, match="no such file; write a plan with"):
        read_plan(tmp_path / "other.json")
    for content in (b"{", b"[]", b'{"target": "torch"}', b"\xff", b"[" * 100_000):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(RecipeError, match="is not a plan"):
            read_plan(tmp_path / "bad.json")
