"""What a fit decided and measured, as it is stored in the manifest and shown."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FitGoal:
    """What was asked for: one of the three."""

    max_bytes: int | None = None
    max_kl: float | None = None  # nats per token
    max_wer_increase: float | None = None  # more errors in 100 words than the original


@dataclass(frozen=True, kw_only=True)
class FittedUnit:
    """One unit: the format it got (None: float16), its bytes, its predicted loss in nats, and the bits per weight of the ideal."""

    name: str
    format: str | None
    bits_per_weight: float
    bytes: int
    predicted_kl: float
    ideal_bits: float


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Another schedule in no more bytes: the mean of `draws`. `measured_kl`: None if it was not measured."""

    title: str
    bytes: float
    predicted_kl: float
    measured_kl: float | None = None
    draws: int = 1


@dataclass(frozen=True, kw_only=True)
class PassCount:
    """Forward passes of one utterance: through encoder and decoder for calibration (all networks), and through either to measure."""

    calibration: int
    encoder: float
    decoder: float


@dataclass(frozen=True, kw_only=True)
class LoopGuard:
    """Of `recordings` decoded: those that `looped` where the original does not, those that do so at the end, and the units that had to
    become larger for it."""

    recordings: int
    looped: tuple[str, ...] = ()
    remaining: tuple[str, ...] = ()
    raised: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WordIncrease:
    """How much the error rate is above the original's, in points (errors in 100 words, or characters where `metric` is CER), with the 95 %
    interval of the paired bootstrap, on `utterances` that no choice has seen. `original_rate`: in percent."""

    points: float
    low: float
    high: float
    original_rate: float
    metric: str
    utterances: int


@dataclass(frozen=True, kw_only=True)
class FitRecord:
    """The outcome of a fit. KL: mean over the tokens of held-out speech, in nats; `measured_kl` on speech that no choice has seen."""

    goal: FitGoal
    bytes: int  # of the real file
    fixed_bytes: int  # of it, what no schedule changes
    predicted_kl: float
    measured_kl: float
    ideal_kl: float  # predicted for real numbers of bits, by reverse water-filling
    tokens: int  # on which `measured_kl` was measured
    rounds: int  # how often the units' losses were measured
    uniform: Baseline | None
    random: Baseline
    units: tuple[FittedUnit, ...]
    passes: PassCount
    swaps_tried: int = 0
    swaps_accepted: int = 0
    guard: LoopGuard | None = None
    words: WordIncrease | None = None  # where a bound on it was the goal
    others: tuple[Baseline, ...] = ()  # further schedules, where they were measured

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """All schedules that stand beside the fit."""
        return tuple(one for one in (self.uniform, self.random, *self.others) if one is not None)

    @property
    def ratio(self) -> float:
        """Measured over predicted KL."""
        return self.measured_kl / self.predicted_kl if self.predicted_kl > 0 else float("inf")
