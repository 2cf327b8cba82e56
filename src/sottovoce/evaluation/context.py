"""How much of its window an encoder works through: all of it, or the length of the clip and a margin.

Whisper's encoder takes 30 seconds, 1,500 positions of 20 ms, whatever the length of a clip. The positions after the clip say that nothing
is spoken there; without them the model does not know where to stop, unless it was tuned for that (whisper.cpp calls the number `audio_ctx`;
fine-tuning for it: futo-org/whisper-acft).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.errors import AudioError, ModelError, RecipeError
from sottovoce.models.whisper import SAMPLES_PER_POSITION

POSITIONS_PER_SECOND = SAMPLE_RATE // SAMPLES_PER_POSITION


@dataclass(frozen=True, kw_only=True)
class ShortContext:
    """What a model was tuned for: the length of a clip plus `margin` positions, and never less than `smallest`."""

    margin: int
    smallest: int

    def __post_init__(self) -> None:
        if self.margin < 0 or self.smallest < 1:
            raise RecipeError(f"a margin of {self.margin} and at least {self.smallest} positions make no context; wanted 0 and 1 or more")


@dataclass(frozen=True, kw_only=True)
class EncoderWindow:
    """The window of a recognizer's encoder: `positions` in all, and why it takes no fewer (`refusal`, None: it does).

    `tuned`: the shorter contexts that its model was tuned for, None if for none.
    """

    positions: int = 30 * POSITIONS_PER_SECOND
    refusal: str | None = None
    tuned: ShortContext | None = None


@dataclass(frozen=True, kw_only=True)
class Context:
    """How many positions of its window an encoder works through.

    `kind` "full": all; "fixed": `positions` for every clip; "margin": those of the clip, and `positions` more, `smallest` at least; "auto":
    the margin that the model was tuned for, or all if it was not.
    """

    kind: Literal["auto", "full", "fixed", "margin"]
    positions: int = 0
    smallest: int = 1

    def __str__(self) -> str:
        return {"fixed": f"{self.positions}", "margin": f"+{self.positions}"}.get(self.kind, self.kind)

    def in_words(self) -> str:
        """Say it in words."""
        if self.kind == "fixed":
            return f"{self.positions} encoder positions ({self.positions / POSITIONS_PER_SECOND:g} s)"
        if self.kind == "margin":
            least = f", {self.smallest} at least" if self.smallest > 1 else ""
            return f"the clip's length + {self.positions} encoder positions{least}"
        return "the whole window" if self.kind == "full" else "as the model was tuned"

    def resolve(self, window: EncoderWindow, source: str) -> Context:
        """Return what this means for a recognizer loaded from `source`: never "auto".

        Raises `ModelError` if its encoder takes only its whole window, `RecipeError` for more positions than that has.
        """
        if self.kind == "auto":
            tuned = None if window.refusal else window.tuned
            return FULL if tuned is None else Context(kind="margin", positions=tuned.margin, smallest=tuned.smallest)
        if self.kind == "full":
            return self
        if window.refusal is not None:
            raise ModelError(f"{source}: {window.refusal}; leave the context {self} out")
        if self.kind == "fixed" and self.positions > window.positions:
            raise RecipeError(
                f"a context of {self.positions} is more than the {window.positions} positions of {source}; give fewer, or full"
            )
        return FULL if self.kind == "fixed" and self.positions == window.positions else self

    def of(self, samples: int, window: EncoderWindow) -> int | None:
        """Return the positions for a clip of so many samples at 16 kHz; None: the whole window.

        Clips as long as the window or longer always have all of it. Raises `AudioError`, without naming the clip, if a fixed context is
        shorter than it is.
        """
        needed = -(-samples // SAMPLES_PER_POSITION)
        if self.kind in ("auto", "full") or needed > window.positions:
            return None
        if self.kind == "fixed" and needed > self.positions:
            raise AudioError(
                f"is {samples / SAMPLE_RATE:.2f} s long, which is {needed} encoder positions, and the context is {self.positions}; "
                f"give a context of {needed} or more, +16, or full"
            )
        chosen = self.positions if self.kind == "fixed" else max(needed + self.positions, self.smallest)
        return None if chosen >= window.positions else chosen


FULL, AUTO = Context(kind="full"), Context(kind="auto")


def as_context(value: str | int | Context) -> Context:
    """Read "auto", "full", a number of encoder positions ("640", 50 a second) or a margin in positions ("+16"). Raises `RecipeError`."""
    if isinstance(value, Context):
        return value
    text = str(value).strip()
    if text in ("auto", "full"):
        return AUTO if text == "auto" else FULL
    digits = text.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or (text == digits and int(digits) == 0):
        raise RecipeError(f"{value!r} is no context; give auto, full, a number of encoder positions (50 a second), or a margin such as +16")
    return Context(kind="fixed" if text == digits else "margin", positions=int(digits))


def by_context(contexts: Sequence[int | None]) -> dict[int | None, list[int]]:
    """Return the places in `contexts` of each context, in the order of their first places."""
    places = dict[int | None, list[int]]()
    for place, context in enumerate(contexts):
        places.setdefault(context, []).append(place)
    return places
