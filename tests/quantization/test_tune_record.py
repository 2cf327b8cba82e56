"""The settings of tuning that follow from the width of the codes and from what is tuned for."""

import math

import pytest

from sottovoce.quantization.tune_record import TuneSettings, default_rates


def test_default_rates() -> None:
    assert default_rates(2) == (2e-3, 1e-3)
    assert default_rates(3) == pytest.approx((math.sqrt(2e-3 * 2e-4), math.sqrt(1e-3 * 5e-4)))
    assert default_rates(4) == default_rates(8) == pytest.approx((2e-4, 5e-4))
    assert default_rates(4, "short") == pytest.approx((2e-4, 1e-3))


def test_default_steps() -> None:
    assert (TuneSettings().n_steps, TuneSettings(context="short").n_steps, TuneSettings(context="short", steps=5).n_steps) == (128, 288, 5)
