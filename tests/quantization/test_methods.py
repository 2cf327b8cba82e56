"""Methods: which settings they take, and how they are called."""

from dataclasses import replace

import pytest

from sottovoce.core.affine import Affine
from sottovoce.errors import RecipeError
from sottovoce.quantization.fit_record import Baseline, FitGoal, FitRecord, PassCount
from sottovoce.quantization.methods import ALGORITHMS, FADE, GPTQ, METHODS, QEP, method_named


@pytest.mark.parametrize(
    ("kind", "name", "taken", "refused"),
    [
        (GPTQ, "damping", (1e-9, 0.01, 100, 100.0), (0, 0.0, -0.1, 100.1, "diagnostic", None)),
        (QEP, "ridge", (1e-9, 1, 100, "held-out"), (0, -0.1, 100.1, "cross-fit")),
        (GPTQ, "scale_refits", (0, 20), (-1, 21)),
        (GPTQ, "curvature", (0.0, 1.0), (-0.001, 1.001)),
        (QEP, "strength", (0.0, 0, 2.0), (-0.001, 2.001, "cross-fit", "diagnostic")),
        (FADE, "strength", (0.0, 2.0, "cross-fit", "diagnostic"), (-0.001, 2.001, "best")),
    ],
)
def test_settings_have_ranges(kind: type[GPTQ], name: str, taken: tuple[object, ...], refused: tuple[object, ...]) -> None:
    for value in taken:
        assert getattr(kind(**{name: value}), name) == value  # type: ignore[arg-type]
    for value in refused:
        with pytest.raises(RecipeError, match=f"^{name} "):
            kind(**{name: value})  # type: ignore[arg-type]


def test_what_is_fixed_beforehand_needs_act_order() -> None:
    for settings in ({"damping": "held-out"}, {"hessian_weighted_scales": True}):
        with pytest.raises(RecipeError, match="needs? act_order"):
            GPTQ(**settings)  # type: ignore[arg-type]
        assert GPTQ(**settings, act_order=True).act_order  # type: ignore[arg-type]


def test_scales_are_fitted_again_in_formats_of_few_bits() -> None:
    """With 3 bits and more it gains next to nothing."""
    assert [FADE().scale_refits_for(Affine(bits=bits)) for bits in (2, 3, 4)] == [4, 0, 0]
    assert GPTQ().scale_refits_for(Affine(bits=2)) == 0


def test_methods_by_name_and_in_words() -> None:
    assert {name: method.title for name, method in METHODS.items()} == {
        "rtn": "RTN", "rtn-imatrix": "RTN with an importance matrix", "awq": "AWQ", "gptq": "GPTQ", "qep": "GPTQ with QEP, strength 0.5",
        "fade-diagnostic": "FADE, strength per layer by the rule diagnostic", "fade": "FADE, strength per layer by the rule cross-fit",
    }  # fmt: skip
    assert FADE(strength=0.25).title == "FADE, strength 0.25"
    assert {name: kind.n_networks for name, kind in ALGORITHMS.items()} == {
        "rtn": 0, "rtn-imatrix": 1, "awq": 1, "gptq": 1, "qep": 2, "fade": 2,
    }  # fmt: skip
    assert method_named("gptq", damping=0.5) == GPTQ(damping=0.5)
    with pytest.raises(RecipeError, match="'best' is not known; choose one of rtn, rtn-imatrix, awq"):
        method_named("best")
    with pytest.raises(RecipeError, match="'rtn' has no setting 'a'; it has no settings"):
        method_named("rtn", b=1, a=1)
    with pytest.raises(RecipeError, match="'gptq' has no setting 'strength'; it has damping, act_order"):
        method_named("gptq", damping=0.5, strength=1.0)


def test_what_the_presets_add_to_each_other() -> None:
    """GPTQ and QEP have their papers' settings, and FADE has all that is ours."""
    assert METHODS["gptq"] == GPTQ(
        damping=0.01,
        act_order=False,
        hessian_weighted_scales=False,
        adaptive_scales=False,
        scale_refits=0,
        absorb_bias=False,
        curvature=0.0,
    )
    published = {name: getattr(METHODS["gptq"], name) for name in vars(METHODS["gptq"])}
    assert METHODS["qep"] == QEP(**published, strength=0.5, ridge=0.01, correct_mlp_output=False, compensate_residual=False)
    ours = {name: True for name in ("act_order", "hessian_weighted_scales", "adaptive_scales", "absorb_bias", "correct_mlp_output")}
    held_out = {"damping": "held-out", "ridge": "held-out"}
    fade = FADE(**ours, **held_out, scale_refits=4, curvature=0.0, strength="cross-fit", compensate_residual=True)  # type: ignore[arg-type]
    assert METHODS["fade"] == fade
    assert METHODS["fade-diagnostic"] == replace(fade, strength="diagnostic", compensate_residual=False)


@pytest.mark.parametrize(("measured", "predicted", "ratio"), [(0.3, 0.1, 3.0), (0.3, 0.0, float("inf")), (0.0, 0.5, 0.0)])
def test_a_fit_says_how_far_it_was_mistaken(measured: float, predicted: float, ratio: float) -> None:
    record = FitRecord(
        goal=FitGoal(max_bytes=1), bytes=1, fixed_bytes=0, predicted_kl=predicted, measured_kl=measured, ideal_kl=0.0, tokens=1, rounds=1,
        uniform=None, random=Baseline(title="random", bytes=1, predicted_kl=1.0), units=(),
        passes=PassCount(calibration=1, encoder=1.0, decoder=1.0),
    )  # fmt: skip
    assert record.ratio == pytest.approx(ratio)
    assert (record.swaps_tried, record.swaps_accepted, record.random.draws) == (0, 0, 1)
