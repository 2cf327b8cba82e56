"""Settings of tuning, and what it did and measured, as stored in the manifest and shown."""

import math
from dataclasses import dataclass
from typing import Literal

from sottovoce.errors import RecipeError
from sottovoce.quantization.pipeline import CalibrationRecord

TunedContext = Literal["full", "short"]
CODE_BITS = (2.0, 4.0)  # between these, default rates are interpolated on a logarithmic scale
RATES = (2e-3, 2e-4)  # of scales, at 2 and 4 bits
FLOAT_RATES = (1e-3, 5e-4)  # of what is no code, at 2 and 4 bits
SHORT_FLOAT_RATE = 1e-3  # of what is no code, for short contexts: positions have to go far
STEPS: dict[TunedContext, int] = {"full": 128, "short": 288}


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How a quantized model is tuned.

    `steps` of `batch_size` utterances; None: 128, or 288 for short contexts. `rate`: the largest relative step of a scale; `float_rate`: of
    norms, biases and position tables, in units of each tensor's root mean square; None: by the width of the codes (`default_rates`).
    `context`: "full", or "short" for an encoder that may stop when the speech stops; then `full_share` of the utterances keep the full
    context (with a tenth it got worse, see docs/tuning.md). `look_every`: steps between looks at held-out speech (None: six looks).
    `sampled`: share of transcripts that are sampled from the original, in place of its greedy ones. `encoder_weight`: of the encoder's
    relative squared error; `prior`: of the mean squared move, beside the KL in nats. Raises `RecipeError` for a value out of range.
    """

    steps: int | None = None
    batch_size: int = 4
    rate: float | None = None
    float_rate: float | None = None
    context: TunedContext = "full"
    full_share: float = 0.3
    look_every: int | None = None
    sampled: float = 0.2
    encoder_weight: float = 1.0
    prior: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "look_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} = {value} is out of range; at least 1")
        for name in ("rate", "float_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 0.1:
                raise RecipeError(f"{name} = {value:g} is out of range; above 0, at most 0.1")
        for name in ("encoder_weight", "prior"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RecipeError(f"{name} = {getattr(self, name):g} is out of range; 0 or more")
        for name in ("sampled", "full_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} = {getattr(self, name):g} is out of range; 0 to 1")
        if self.context not in ("full", "short"):
            raise RecipeError(f"context = {self.context!r} is not known; 'full' or 'short'")

    @property
    def steps_between_looks(self) -> int:
        """Steps from one look at held-out speech to the next."""
        return self.look_every or -(-self.n_steps // 6)

    @property
    def n_steps(self) -> int:
        """The steps that are taken."""
        return self.steps or STEPS[self.context]


def default_rates(code_bits: float, context: TunedContext = "full") -> tuple[float, float]:
    """Return `rate` and `float_rate` for codes of so many bits on average.

    The coarser the codes, the farther scales have to go: 2e-3 at 2 bits, 2e-4 from 4 bits on; see docs/tuning.md.
    """
    low, high = CODE_BITS
    share = min(1.0, max(0.0, (code_bits - low) / (high - low)))
    rate, float_rate = (first ** (1 - share) * last**share for first, last in (RATES, FLOAT_RATES))
    return rate, max(float_rate, SHORT_FLOAT_RATE) if context == "short" else float_rate


@dataclass(frozen=True, kw_only=True)
class Look:
    """A look at held-out speech after `step` steps. KL to the original in nats per token: `kl` on held-out speech and `seen_kl` on some
    that was trained on, at the full context; `short_kl`, `seen_short_kl`: at short ones, if that is what is tuned for. `seen_log_ratio`:
    mean of `log q - log p` at the tokens of the original's transcripts of speech that was trained on; above 0 the model is surer of them
    than the original. `loops`: ids of held-out recordings that loop where the original does not."""

    step: int
    kl: float
    seen_kl: float
    short_kl: float | None = None
    seen_short_kl: float | None = None
    seen_log_ratio: float | None = None
    loops: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How far a tensor was moved: root mean square, relative to its values (scales: each to its own)."""

    name: str
    change: float


@dataclass(frozen=True, kw_only=True)
class TuneRecord:
    """The outcome of tuning. `chosen`: the step of the look that was kept; 0: none was better than the start, which was kept.

    `rate`, `float_rate`: those used. `numbers`: how many were trained. `codes`: sha256 of all codes, before and after. `held_out`: ids of
    the utterances looked at; `calibrated_on`: how many of them the codes had been calibrated on. `tokens`: compared at each look.
    """

    settings: TuneSettings
    rate: float
    float_rate: float
    original: str
    numbers: int
    codes: str
    looks: tuple[Look, ...]
    chosen: int
    moved: tuple[Moved, ...]
    speech: CalibrationRecord
    held_out: tuple[str, ...]
    calibrated_on: int
    tokens: int

    @property
    def start(self) -> Look:
        """The look before the first step."""
        return self.looks[0]

    @property
    def best(self) -> Look:
        """The look that was kept."""
        return next(look for look in self.looks if look.step == self.chosen)
