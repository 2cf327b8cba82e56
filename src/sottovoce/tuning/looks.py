"""Looks at held-out speech: the KL at every token of the original's transcripts, and loops in what the tuned model itself says."""

from collections.abc import Sequence

import torch

from sottovoce.evaluation.failures import text_loops
from sottovoce.evaluation.kl_divergence import predicting_states
from sottovoce.models.batching import Encoded, batches_by_language
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.tune_record import Context, Look
from sottovoce.tuning.loss import divergence
from sottovoce.tuning.schedule import LOOK_MARGIN, short_context
from sottovoce.tuning.teacher import Lesson

DECODER_BATCH = 8  # utterances decoded at once
SPARE = 2  # times the tokens of the original's transcript are decoded at most, and some more: enough to tell a loop
SPARE_TOKENS = 60
WORSE_ALLOWED = 1.25  # KL at the full context against the start's, where short ones are tuned for


def encode(model: SpeechModel, lesson: Lesson, context: int | None) -> Encoded:
    """Return the encoder outputs of a recording, of its first positions if a context is given."""
    features = model.features([lesson.recording])
    return model.encode(features if context is None else model.shortened(features, context))


@torch.no_grad()
def look(
    original: SpeechModel, model: SpeechModel, held_out: Sequence[Lesson], seen: Sequence[Lesson], context: Context, step: int
) -> Look:
    """Measure `model` on both folds, and listen to it on the held-out one.

    For short contexts every other utterance is taken at a short one, its length and 16 positions, and the rest at the full one.
    """
    if context == "full":
        kl, loops = _measure(original, model, held_out, short=False, listen=True)
        seen_kl, _ = _measure(original, model, seen, short=False, listen=False)
        return Look(step=step, kl=kl, seen_kl=seen_kl, loops=loops)
    short_kl, short_loops = _measure(original, model, held_out[0::2], short=True, listen=True)
    kl, loops = _measure(original, model, held_out[1::2], short=False, listen=True)
    seen_short_kl, _ = _measure(original, model, seen[0::2], short=True, listen=False)
    seen_kl, _ = _measure(original, model, seen[1::2], short=False, listen=False)
    return Look(
        step=step, kl=kl, seen_kl=seen_kl, short_kl=short_kl, seen_short_kl=seen_short_kl, loops=tuple(sorted({*short_loops, *loops}))
    )


def best_look(looks: Sequence[Look]) -> Look:
    """Return the look with the lowest KL among those that are admissible: no more loops than the start has, and, where short contexts are
    tuned for, a KL at the full context of at most 1.25 times the start's. The start itself is one of them."""
    start = looks[0]
    return min((one for one in looks if _admissible(one, start)), key=lambda one: (_aim(one), one.step))


def _admissible(one: Look, start: Look) -> bool:
    return len(one.loops) <= len(start.loops) and (one.short_kl is None or one.kl <= WORSE_ALLOWED * start.kl)


def _aim(one: Look) -> float:
    return one.kl if one.short_kl is None else one.short_kl


def _measure(
    original: SpeechModel, model: SpeechModel, lessons: Sequence[Lesson], *, short: bool, listen: bool
) -> tuple[float, tuple[str, ...]]:
    """The mean KL over the tokens of greedy transcripts, and the ids of recordings that loop where the original's transcript does not."""
    total, tokens, loops = 0.0, 0, list[str]()
    head = model.module(model.head)
    waiting: list[tuple[Lesson, Encoded]] = []
    for lesson in lessons:
        context = short_context(model, len(lesson.recording), LOOK_MARGIN) if short else None
        encoded = encode(model, lesson, context)
        (states,) = predicting_states(model, encoded, [lesson.transcripts[0]], lesson.language)
        log_q = torch.log_softmax(head(states).float(), dim=-1)
        total += float(divergence(lesson.log_probabilities(original, 0), log_q).double())
        tokens += len(log_q)
        if not listen or lesson.loops:
            continue
        if short:
            loops += _loops(model, [(lesson, encoded)])
            continue
        waiting.append((lesson, encoded))
        if len(waiting) == DECODER_BATCH:
            loops += _loops(model, waiting)
            waiting = []
    loops += _loops(model, waiting)
    return total / max(1, tokens), tuple(sorted(loops))


def _loops(model: SpeechModel, heard: Sequence[tuple[Lesson, Encoded]]) -> list[str]:
    found = list[str]()
    for rows in batches_by_language(range(len(heard)), [lesson.language for lesson, _ in heard], DECODER_BATCH):
        lessons = [heard[i][0] for i in rows]
        limit = SPARE * max(len(lesson.transcripts[0]) for lesson in lessons) + SPARE_TOKENS
        decoded = model.greedy_decode(Encoded.joined([heard[i][1] for i in rows]), lessons[0].language, limit)
        found += [
            lesson.id for lesson, (spoken, _) in zip(lessons, decoded, strict=True) if text_loops(model.text(spoken), lesson.language)
        ]
    return found
