"""Which utterances each step takes, with which transcript and context, and how far it may go: all drawn by the seed beforehand."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from sottovoce.evaluation.context import Context, EncoderWindow
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.tune_record import TuneSettings
from sottovoce.tuning.teacher import Lesson

WARM_UP = 0.1  # share of the steps in which the rate rises
LAST_RATE = 0.01  # of the largest, at the end
MARGINS = (8, 128)  # encoder positions beyond the end of a recording, drawn evenly on a logarithmic scale
MARGIN = 64  # at looks, and for which a folder then says that it is tuned: 1.3 s
SMALLEST = 100  # encoder positions of a context


@dataclass(frozen=True)
class Exercise:
    """One utterance of a step: its number, which of its transcripts, and the encoder positions (None: all)."""

    lesson: int
    transcript: int
    context: int | None


def rate_share(step: int, steps: int) -> float:
    """Return the share of the largest rate at `step` (from 0): a linear rise, then half a cosine."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2


def exercises(model: SpeechModel, lessons: Sequence[Lesson], settings: TuneSettings, seed: int) -> list[list[Exercise]]:
    """Return the exercises of every step. Each utterance comes once before any comes again."""
    chance = random.Random(f"tune {seed}")  # noqa: S311 - a reproducible draw, no secret
    order, steps = list[int](), list[list[Exercise]]()
    for _ in range(settings.n_steps):
        step = list[Exercise]()
        for _ in range(min(settings.batch_size, len(lessons))):
            if not order:
                order = list(range(len(lessons)))
                chance.shuffle(order)
            lesson = lessons[order[-1]]
            which = int(len(lesson.transcripts) > 1 and chance.random() < settings.sampled)
            context = None
            if settings.context == "short" and chance.random() >= settings.full_share:
                margin = math.exp(chance.uniform(*map(math.log, MARGINS)))
                context = short_context(model, len(lesson.recording), round(margin))
            step.append(Exercise(order.pop(), which, context))
        steps.append(step)
    return steps


def short_context(model: SpeechModel, samples: int, margin: int) -> int | None:
    """Return the encoder positions for a recording of so many samples and a margin; None: the whole window, or there is none to cut."""
    if model.window_positions is None:
        return None
    smallest = min(SMALLEST, model.window_positions)
    return Context(kind="margin", positions=margin, smallest=smallest).of(samples, EncoderWindow(positions=model.window_positions))
