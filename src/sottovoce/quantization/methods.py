"""Methods by name: a settings class for each, and presets.

A new method is an algorithm in `core/`, a settings class here, and a line in `METHODS`.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sottovoce.errors import RecipeError
from sottovoce.system.plain_data import register_tagged_classes

if TYPE_CHECKING:
    from sottovoce.core.number_format import NumberFormat

HELD_OUT: Literal["held-out"] = "held-out"
MOST_SCALE_REFITS = 20

Strength = float | Literal["cross-fit", "diagnostic"]
HeldOut = float | Literal["held-out"]


def _check_positive(name: str, value: HeldOut) -> None:
    if value != HELD_OUT and not (isinstance(value, int | float) and 0 < value <= 100):
        raise RecipeError(f"{name} {value!r} is out of range; above 0, at most 100, or '{HELD_OUT}'")


@dataclass(frozen=True, kw_only=True)
class Method:
    """How codes are found. The fields of a subclass are its settings."""

    algorithm: ClassVar[str]
    n_networks: ClassVar[int]  # that calibration runs side by side; 0: it needs no data

    @property
    def title(self) -> str:
        """The method in words."""
        return self.algorithm.upper()


@dataclass(frozen=True, kw_only=True)
class RTN(Method):
    """Round to nearest: no calibration data."""

    algorithm: ClassVar[str] = "rtn"
    n_networks: ClassVar[int] = 0


@dataclass(frozen=True, kw_only=True)
class ImportanceRTN(Method):
    """Round to nearest with scales that weight each column's error by its mean squared input: llama.cpp's importance matrix."""

    algorithm: ClassVar[str] = "rtn-imatrix"
    n_networks: ClassVar[int] = 1

    @property
    def title(self) -> str:
        return "RTN with an importance matrix"


@dataclass(frozen=True, kw_only=True)
class AWQ(Method):
    """Activation-aware scaling of input channels, then rounding (arXiv 2306.00978)."""

    algorithm: ClassVar[str] = "awq"
    n_networks: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class GPTQ(Method):
    """Rounding column by column against the Hessian (arXiv 2210.17323)."""

    algorithm: ClassVar[str] = "gptq"
    n_networks: ClassVar[int] = 1

    # Added to the Hessian's diagonal, in units of its mean: above 0, at most 100, or "held-out": chosen per layer on a held-out fold
    # (ours). Other tools call it percdamp or dampening_frac; 0.01 is the paper's value.
    damping: HeldOut = 0.01
    # Whether columns are rounded by decreasing diagonal of the Hessian (desc_act, actorder in GPTQ's published code).
    act_order: bool = False
    # Whether the search of scales weights each column's error by the Hessian's diagonal (llm-compressor: imatrix). Needs act_order.
    hessian_weighted_scales: bool = False
    # Whether the scales of sub-blocks are chosen again on the weights as compensated, in formats that have them (ours). With act_order
    # only: without it every block is fitted to its compensated weights anyway.
    adaptive_scales: bool = False
    # How often scales are fitted again to the codes of layers of few bits (`NumberFormat.refit_bits`), which are rounded again in
    # between: 0 to 20 (ours).
    scale_refits: int = 0
    # Whether the mean output error goes into the bias, where there is one (bias correction, arXiv 1906.04721).
    absorb_bias: bool = False
    # Share of the weight of each position, 0 to 1, that follows how much the end loss minds an error there (GuidedQuant, arXiv
    # 2505.07004); above 0 it costs one more pass of the original, forwards and backwards. See `quantization.curvature`.
    curvature: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("damping", self.damping)
        if not 0 <= self.scale_refits <= MOST_SCALE_REFITS:
            raise RecipeError(f"scale_refits {self.scale_refits!r} is out of range; 0 to {MOST_SCALE_REFITS}")
        if not 0 <= self.curvature <= 1:
            raise RecipeError(f"curvature {self.curvature!r} is out of range; 0 to 1")
        if self.damping == HELD_OUT and not self.act_order:
            raise RecipeError("held-out damping needs act_order, whose scales are fixed beforehand")
        if self.hessian_weighted_scales and not self.act_order:
            raise RecipeError("Hessian-weighted scales need act_order, whose scales are fixed beforehand")

    def scale_refits_for(self, number_format: "NumberFormat") -> int:
        """Return how often the parameters of a layer in this format are fitted again."""
        return self.scale_refits if number_format.code_bits <= number_format.refit_bits else 0


@dataclass(frozen=True, kw_only=True)
class QEP(GPTQ):
    """GPTQ whose target is corrected for the error that earlier layers pass on (arXiv 2504.09629), with one strength for all layers."""

    algorithm: ClassVar[str] = "qep"
    n_networks: ClassVar[int] = 2

    strength: Strength = 0.5  # of the correction: 0 (plain GPTQ) to 2; the paper's value is 0.5
    # Added to the Hessian's diagonal where the correction is solved, in units of its mean: above 0, at most 100, or "held-out".
    ridge: HeldOut = 0.01
    # Whether the second linear of feed-forward blocks is corrected too; the paper leaves it.
    correct_mlp_output: bool = False
    # Whether layers that write into the residual stream correct for what the stream lacks (WaterSIC, arXiv 2603.04956).
    compensate_residual: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("ridge", self.ridge)
        if isinstance(self.strength, str):
            if self.algorithm != FADE.algorithm:
                raise RecipeError(f"strength {self.strength!r} is a rule of FADE; QEP takes a number from 0 to 2")
            if self.strength not in ("cross-fit", "diagnostic"):
                raise RecipeError(f"strength {self.strength!r} is not known; a number from 0 to 2, 'cross-fit' or 'diagnostic'")
        elif not 0 <= self.strength <= 2:
            raise RecipeError(f"strength {self.strength!r} is out of range; 0 to 2, or of FADE 'cross-fit' or 'diagnostic'")

    @property
    def title(self) -> str:
        return f"GPTQ with QEP, strength {self.strength:g}"


@dataclass(frozen=True, kw_only=True)
class FADE(QEP):
    """QEP with a strength per layer that diagnostics choose (arXiv 2601.02455; the rules are ours, see `core.fade`)."""

    algorithm: ClassVar[str] = "fade"

    # "cross-fit": what is learnt on one fold is judged on the other. "diagnostic": sigmoid of vulnerability and reliability.
    strength: Strength = "cross-fit"
    ridge: HeldOut = HELD_OUT
    damping: HeldOut = HELD_OUT
    act_order: bool = True
    hessian_weighted_scales: bool = True
    adaptive_scales: bool = True
    scale_refits: int = 4
    absorb_bias: bool = True
    correct_mlp_output: bool = True
    compensate_residual: bool = True

    @property
    def title(self) -> str:
        if isinstance(self.strength, str):
            return f"FADE, strength per layer by the rule {self.strength}"
        return f"FADE, strength {self.strength:g}"


ALGORITHMS: dict[str, type[Method]] = {kind.algorithm: kind for kind in (RTN, ImportanceRTN, AWQ, GPTQ, QEP, FADE)}
METHODS: dict[str, Method] = {
    "rtn": RTN(),
    "rtn-imatrix": ImportanceRTN(),
    "awq": AWQ(),
    "gptq": GPTQ(),
    "qep": QEP(),
    "fade-diagnostic": FADE(strength="diagnostic", compensate_residual=False),
    "fade": FADE(),
}
DEFAULT_METHOD = "fade"

register_tagged_classes(Method, ALGORITHMS, tag="algorithm")


def method_named(name: str, **changes: Any) -> Method:
    """Return the method called `name` with some settings changed. Raises `RecipeError` for an unknown name or setting."""
    if name not in METHODS:
        raise RecipeError(f"method {name!r} is not known; choose one of {', '.join(METHODS)}")
    method = METHODS[name]
    known = [field.name for field in fields(method)]
    if unknown := sorted(changes.keys() - set(known)):
        has = f"it has {', '.join(known)}" if known else "it has no settings"
        raise RecipeError(f"method {name!r} has no setting {unknown[0]!r}; {has}")
    return replace(method, **changes)
