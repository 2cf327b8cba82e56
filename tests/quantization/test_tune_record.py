"""The settings of tuning that follow from the width of the codes and from what is tuned for."""

import math

import pytest

from sottovoce.errors import RecipeError
from sottovoce.quantization.pipeline import CalibrationRecord
from sottovoce.quantization.tune_record import Look, TuneRecord, TuneSettings, default_rates


def test_default_rates() -> None:
    assert default_rates(1.5) == default_rates(2) == (2e-3, 1e-3)
    assert default_rates(3) == pytest.approx((math.sqrt(2e-3 * 2e-4), math.sqrt(1e-3 * 5e-4)))
    assert default_rates(4) == default_rates(8) == pytest.approx((2e-4, 5e-4))
    assert default_rates(4, "short") == pytest.approx((2e-4, 1e-3))
    assert default_rates(2.5) == pytest.approx((2e-3**0.75 * 2e-4**0.25, 1e-3**0.75 * 5e-4**0.25))


def test_default_steps() -> None:
    assert (TuneSettings().n_steps, TuneSettings(context="short").n_steps, TuneSettings(context="short", steps=5).n_steps) == (128, 288, 5)


def test_looks_are_six_unless_told_otherwise() -> None:
    """The last may come sooner; it comes after the last step in any case."""
    assert [TuneSettings(steps=steps).steps_between_looks for steps in (1, 6, 7, 12, 13, 128)] == [1, 1, 2, 2, 3, 22]
    assert TuneSettings(context="short").steps_between_looks == 48
    assert TuneSettings(steps=100, look_every=9).steps_between_looks == 9


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("steps", (1, None), (0, -1)),
        ("batch_size", (1,), (0,)),
        ("look_every", (1, None), (0,)),
        ("rate", (1e-9, 0.1, None), (0.0, -1e-9, 0.1001)),
        ("float_rate", (1e-9, 0.1, None), (0.0, 0.1001)),
        ("encoder_weight", (0.0, 1e9), (-1e-9, math.inf, math.nan)),
        ("prior", (0.0, 1e9), (-1e-9, math.inf)),
        ("sampled", (0.0, 1.0), (-1e-9, 1.0001)),
        ("full_share", (0.0, 1.0), (-1e-9, 1.0001)),
        ("context", ("full", "short"), ("long", "")),
    ],
)
def test_settings_have_ranges(name: str, taken: tuple[object, ...], refused: tuple[object, ...]) -> None:
    for value in taken:
        assert getattr(TuneSettings(**{name: value}), name) == value  # type: ignore[arg-type]
    for value in refused:
        with pytest.raises(RecipeError, match=f"^{name} = "):
            TuneSettings(**{name: value})  # type: ignore[arg-type]


def test_the_look_that_was_kept_is_found_by_its_step() -> None:
    looks = tuple(Look(step=step, kl=1.0 / (step + 1), seen_kl=0.0) for step in (0, 22, 44))
    record = TuneRecord(
        settings=TuneSettings(), rate=1.0, float_rate=1.0, original="o", numbers=1, codes="c", looks=looks, chosen=22, moved=(),
        speech=CalibrationRecord(seed=0, utterances=(), seconds=1.0, cut_at_silence=()), held_out=(), calibrated_on=0, tokens=1,
    )  # fmt: skip
    assert (record.start.step, record.best.step) == (0, 22)
