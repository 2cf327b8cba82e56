"""How much of its window an encoder works through: all of it, or the length of the clip and a margin.

Whisper's encoder takes 30 seconds, 1,500 positions of 20 ms, whatever the length of a clip. The positions after the clip say that nothing
is spoken there; without them the model does not know where to stop, unless it was tuned for that (whisper.cpp calls the number `audio_ctx`;
fine-tuning for it: futo-org/whisper-acft).
"""

from dataclasses import dataclass

from sottovoce.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class ShortContext:
    """What a model was tuned for: the length of a clip plus `margin` positions, and never less than `smallest`."""

    margin: int
    smallest: int

    def __post_init__(self) -> None:
        if self.margin < 0 or self.smallest < 1:
            raise RecipeError(f"a margin of {self.margin} and at least {self.smallest} positions make no context; wanted 0 and 1 or more")
