"""Schedules against brute force, and the baselines beside them."""

import itertools
import random

import numpy as np
import pytest

from sottovoce.backends.registry import BACKENDS
from sottovoce.core.affine import Affine
from sottovoce.core.affine_minimum import AffineMinimum
from sottovoce.core.formats import format_named
from sottovoce.core.number_format import NumberFormat
from sottovoce.errors import RecipeError
from sottovoce.models.layers import Layer
from sottovoce.quantization.plan import PlannedLayer
from sottovoce.quantization.recipe import FLOAT_BITS
from sottovoce.quantization.schedule import (
    PricedUnit,
    Unit,
    _finest,
    _holds,
    _nearest_entry,
    blocking_unit,
    bytes_of,
    cheapest_loss,
    fewest_bytes,
    ideal_bits,
    make_units,
    plan_of,
    random_schedule,
    schedule_of,
    uniform_entries,
)
from tests.conftest import make_tiny

MENU: tuple[NumberFormat | None, ...] = tuple(Affine(bits=bits, group_size=32) for bits in (2, 3, 4, 8))


def unit(name: str, rows: int, menu: tuple[NumberFormat | None, ...] = MENU) -> Unit:
    first = menu[0]
    assert first is not None
    layer = PlannedLayer(name=name, part="encoder", format=first, shape=(rows, 64), tie_group=None, rounds_activations=False)
    sizes = tuple(rows * 64 * 2 if one is None else round(rows * 64 * one.bits_per_weight(64) / 8) for one in menu)
    return Unit(name=name, layers=(layer,), menu=menu, bytes=sizes)


@pytest.fixture
def priced() -> list[PricedUnit]:
    """Four units of unequal sizes and losses whose errors fall by four a bit, but for some noise."""
    chance = random.Random(3)  # noqa: S311 - test data
    found = []
    for i, rows in enumerate((32, 96, 64, 160)):
        errors = tuple(chance.uniform(0.8, 1.2) * 4.0**-bits for bits in (2, 3, 4, 8))
        found.append(PricedUnit(unit=unit(f"u{i}", rows), errors=errors, base=1, base_loss=0.01 * (1 + 3 * i)))
    return found


def every(priced: list[PricedUnit]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(one.unit.menu)) for one in priced)))


def test_losses_are_the_base_loss_at_the_base_and_scale_with_the_errors(priced: list[PricedUnit]) -> None:
    one = priced[2]
    assert one.losses[one.base] == pytest.approx(one.base_loss)
    assert one.losses[3] == pytest.approx(one.base_loss * one.errors[3] / one.errors[1])
    silent = PricedUnit(unit=one.unit, errors=(0.0,) * 4, base=1, base_loss=0.3)
    assert silent.losses == (0.0,) * 4


def test_the_least_loss_within_bytes_is_brute_forces(priced: list[PricedUnit]) -> None:
    smallest = sum(one.unit.bytes[0] for one in priced)
    for most in (smallest, smallest + 900, smallest + 4000, smallest + 10**6):
        wanted = min((s for s in (schedule_of(priced, e) for e in every(priced)) if s.bytes <= most), key=lambda s: s.loss)
        found = cheapest_loss(priced, most)
        assert found is not None
        assert found.loss == pytest.approx(wanted.loss)
        assert found.bytes <= most
    assert cheapest_loss(priced, smallest - 1) is None


def test_the_fewest_bytes_below_a_loss_are_brute_forces(priced: list[PricedUnit]) -> None:
    for most in (0.2, 0.05, 0.004):
        wanted = min((s for s in (schedule_of(priced, e) for e in every(priced)) if s.loss <= most), key=lambda s: s.bytes)
        found = fewest_bytes(priced, most)
        assert found is not None
        assert found.bytes == wanted.bytes
        assert found.loss <= most
    assert fewest_bytes(priced, 1e-9) is None


def test_entries_below_the_least_are_not_taken(priced: list[PricedUnit]) -> None:
    guarded = [PricedUnit(unit=p.unit, errors=p.errors, base=p.base, base_loss=p.base_loss, least_bytes=p.unit.bytes[2]) for p in priced]
    found = cheapest_loss(guarded, sum(p.unit.bytes[2] for p in priced))
    assert found is not None
    assert found.entries == (2, 2, 2, 2)
    assert cheapest_loss(guarded, sum(p.unit.bytes[2] for p in priced) - 1) is None


def test_the_ideal_has_equal_marginal_losses_and_costs_what_it_says(priced: list[PricedUnit]) -> None:
    counts = np.array([p.unit.weights for p in priced], float)
    most = round(counts.sum() * 4.0 / 8)
    bits, loss = ideal_bits(priced, most)
    assert float(counts @ bits) / 8 == pytest.approx(most, rel=1e-6)
    stored = [np.array(p.unit.bytes) * 8 / p.unit.weights for p in priced]
    losses = [p.base_loss * 4.0 ** (s[p.base] - b) for p, s, b in zip(priced, stored, bits, strict=True)]
    assert loss == pytest.approx(sum(losses))
    marginal = np.array(losses) / counts
    np.testing.assert_allclose(marginal, marginal[0], rtol=1e-6)
    assert all(float(min(s)) <= b <= float(max(s)) for s, b in zip(stored, bits, strict=True))


def test_random_schedules_fill_the_bytes_and_differ(priced: list[PricedUnit]) -> None:
    most = sum(one.unit.bytes[0] for one in priced) + 3000
    found = {random_schedule(priced, most, np.random.default_rng(seed)) for seed in range(20)}
    assert len(found) > 3
    for one in found:
        assert one.bytes <= most
        assert one == schedule_of(priced, one.entries)
        larger = [p.unit.bytes[e + 1] - p.unit.bytes[e] for p, e in zip(priced, one.entries, strict=True) if e + 1 < len(p.unit.menu)]
        assert not larger or min(larger) > most - one.bytes  # nothing more fits
    assert random_schedule(priced, most, np.random.default_rng(1)) == random_schedule(priced, most, np.random.default_rng(1))


def test_uniform_is_the_largest_format_that_fits_all(priced: list[PricedUnit]) -> None:
    units = [one.unit for one in priced]
    at_four = sum(one.bytes[2] for one in units)
    assert uniform_entries(units, at_four) == (2, 2, 2, 2)
    assert uniform_entries(units, at_four - 1) == (1, 1, 1, 1)
    assert uniform_entries(units, 1) == (0, 0, 0, 0)
    narrow = [*units, unit("few", 32, MENU[2:])]  # cannot have 3 bits, and takes the next larger
    assert uniform_entries(narrow, sum(one.bytes[1] for one in units) + narrow[-1].bytes[0]) == (1, 1, 1, 1, 0)


def test_of_one_size_the_format_with_more_parameters_is_the_single_one() -> None:
    target = BACKENDS["transcribe.cpp"].target
    minimum, whole = format_named("q4_1"), target.format(bits=4, group_size=32, symmetric=False)
    one = make_units(make_tiny(layers=1), target, (whole, minimum), lambda *_: 640)[0]  # in the file both are Q4_1
    assert one.bytes[one.menu.index(whole)] == one.bytes[one.menu.index(minimum)]
    assert one.menu.index(minimum) < one.menu.index(whole)
    assert one.menu[uniform_entries([one], one.bytes[one.menu.index(minimum)])[0]] == minimum


def test_the_unit_that_blocks_is_the_one_that_is_large_at_its_smallest(priced: list[PricedUnit]) -> None:
    units = [one.unit for one in priced]
    blocking, least = blocking_unit(units)
    assert blocking.name == "u3"
    assert least == sum(one.bytes[0] for one in units)


def layer_bytes(number_format: NumberFormat, _layer: Layer, shape: tuple[int, int]) -> int:
    return round(shape[0] * shape[1] * number_format.bits_per_weight(shape[1]) / 8)


def test_units_are_what_the_runtime_ties_and_plans_have_their_formats() -> None:
    model, target = make_tiny(layers=1), BACKENDS["compressed-tensors"].target
    four, eight = target.format(bits=4, group_size=32), target.format(bits=8, group_size=32)
    units = make_units(model, target, (four, eight), layer_bytes)
    members = {one.name: len(one.layers) for one in units}
    assert members["model.encoder.layers.0.self_attn.(q_proj|k_proj|v_proj)"] == 3
    assert members["model.decoder.layers.0.encoder_attn.(k_proj|v_proj)"] == 2  # its queries read other inputs
    assert members["model.decoder.layers.0.encoder_attn.q_proj"] == 1
    assert all(one.bytes == tuple(sorted(one.bytes)) for one in units)
    plan = plan_of(units, [0] * len(units), model, target)
    assert {layer.format for layer in plan.layers} == {four}
    with pytest.raises(RecipeError, match="everything fits in float16"):
        plan_of(units, [len(one.menu) - 1 for one in units], model, target)


def test_a_runtime_of_one_format_has_one_unit() -> None:
    model, target = make_tiny(layers=1), BACKENDS["whisper.cpp"].target
    (one,) = make_units(model, target, (format_named("q4_0"), format_named("q8_0")), layer_bytes)
    assert len(one.layers) == 17
    assert None not in one.menu


def test_a_format_that_takes_no_less_than_a_finer_one_is_left_out() -> None:
    """3 bits that a file holds as 4 cost what 4 bits cost, so nobody wants them."""
    model, target = make_tiny(layers=1), BACKENDS["onnxruntime"].target
    three, four = (target.format(bits=bits, group_size=32) for bits in (3, 4))
    units = make_units(model, target, (three, four), lambda _format, _layer, shape: shape[0] * shape[1] // 2)
    assert all(three not in one.menu and four in one.menu for one in units)


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        (Affine(bits=3, group_size=32), Affine(bits=4, group_size=32), "other"),  # more bits
        (Affine(bits=4, group_size=64), Affine(bits=4, group_size=32), "other"),  # smaller blocks
        (Affine(bits=4, group_size=None), Affine(bits=4, group_size=64), "other"),  # rows of 128
        (Affine(bits=4, group_size=None), Affine(bits=4, group_size=128), "one"),  # a block is a row: the same, and the first stays
        (Affine(bits=4, group_size=128), Affine(bits=4, group_size=None), "one"),
        (Affine(bits=4, group_size=64), Affine(bits=3, group_size=32), "both"),  # each is finer in one way
        (Affine(bits=3, group_size=32), Affine(bits=4, group_size=32, symmetric=True), "both"),
        (Affine(bits=3, group_size=32), Affine(bits=4, group_size=32, observer="minmax"), "both"),
        (Affine(bits=3, group_size=32), AffineMinimum(bits=4, group_size=32), "both"),  # of another kind
        (Affine(bits=4, group_size=32), Affine(bits=4, group_size=32, float16_min=True), "one"),
        (Affine(bits=4, group_size=32, float16_min=True), Affine(bits=4, group_size=32), "one"),
        (Affine(bits=3, group_size=32), None, "both"),
    ],
)
def test_of_two_formats_of_one_size_the_finer_stays(one: NumberFormat, other: NumberFormat | None, kept: str) -> None:
    wanted = {"one": [one], "other": [other], "both": [one, other]}[kept]
    assert _finest({one: 100, other: 100}, 128) == wanted
    if kept != "one":  # whichever comes first
        assert _finest({other: 100, one: 100}, 128) == wanted[::-1]
    assert _finest({one: 100, other: 101}, 128) == [one, other]


def test_a_menu_has_float16_and_what_fits_all_layers_of_a_unit() -> None:
    model, target = make_tiny(layers=1), BACKENDS["torch"].target
    narrow, wide = (Affine(bits=4, group_size=size) for size in (64, 128))  # rows of 64, but 128 of the second of each feed-forward block
    units = {one.name: one for one in make_units(model, target, (narrow, wide), layer_bytes)}
    first, second = units["model.encoder.layers.0.fc1"], units["model.encoder.layers.0.fc2"]
    assert first.menu == (narrow, None)
    assert second.menu == (wide, narrow, None)
    assert first.bytes[-1] == 128 * 64 * FLOAT_BITS / 8 == 2 * first.weights
    assert list(second.bytes) == sorted(second.bytes)
    assert units["model.decoder.embed_tokens"].layers[0].tie_group == "model.decoder.embed_tokens"
    with pytest.raises(RecipeError, match=r"whisper\.cpp holds all in none of the formats 2 bits, groups of 32"):
        make_units(model, BACKENDS["whisper.cpp"].target, (Affine(bits=2, group_size=32),), layer_bytes)


def test_a_layer_gets_no_fewer_bits_than_its_family_wants() -> None:
    target = BACKENDS["torch"].target
    held = [_holds(target, Affine(bits=bits), Layer("a", "encoder", "frames", min_bits=4), (64, 64)) for bits in (3, 4, 5)]
    assert held == [False, True, True]
    assert not _holds(target, Affine(bits=4, group_size=64), Layer("a", "encoder", "frames"), (64, 96))


@pytest.mark.parametrize(
    ("wanted", "entry"),
    [
        (Affine(bits=4, group_size=64), 0),  # its own
        (Affine(bits=3, group_size=64), 0),
        (Affine(bits=4, group_size=32), 1),  # smaller blocks take more
        (Affine(bits=4, group_size=None, symmetric=True), 0),  # rows of 64: what groups of 64 take without zero points
        (Affine(bits=5, group_size=64), 1),
        (Affine(bits=8, group_size=32), 2),  # nothing is as large: the last
        (Affine(bits=4, group_size=128), 0),  # its blocks do not divide a row, so it counts by its bits alone
        (Affine(bits=5, group_size=128), 1),
        (Affine(bits=8, group_size=128), 1),
    ],
)
def test_a_unit_without_a_format_takes_the_next_larger_entry(wanted: NumberFormat, entry: int) -> None:
    menu = (Affine(bits=4, group_size=64), Affine(bits=8, group_size=64), Affine(bits=8, group_size=None))
    few = unit("few", 32, menu[:2])
    few = Unit(name="few", layers=few.layers, menu=menu, bytes=(*few.bytes, few.bytes[1]))
    assert _nearest_entry(few, wanted) == entry


def test_every_unit_has_an_entry(priced: list[PricedUnit]) -> None:
    for entries in ([0] * 3, [0] * 5):
        with pytest.raises(ValueError, match="zip"):
            schedule_of(priced, entries)
        with pytest.raises(ValueError, match="zip"):
            bytes_of([one.unit for one in priced], entries)


def test_random_schedules_pass_over_entries_that_take_nothing_more() -> None:
    """Two formats of one size: a change from one to the other fills nothing, and must not be made for ever."""
    doubled = unit("doubled", 32, (MENU[0], MENU[2], MENU[3]))
    doubled = Unit(name="doubled", layers=doubled.layers, menu=doubled.menu, bytes=(100, 100, 200))
    priced = [PricedUnit(unit=doubled, errors=(1.0, 0.5, 0.1), base=0, base_loss=1.0)]
    assert random_schedule(priced, 199, np.random.default_rng(0)).entries == (0,)
    assert random_schedule(priced, 200, np.random.default_rng(0)).entries == (2,)
