"""Looks at held-out speech: the KL at every token of the original's transcripts, and loops in what the tuned model itself says."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sottovoce.evaluation.failures import text_loops
from sottovoce.evaluation.kl_divergence import head_log_probabilities, predicting_states, token_kl
from sottovoce.models.batching import Encoded, batches_by_language
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.tune_record import Look, TunedContext
from sottovoce.system.devices import in_float64
from sottovoce.tuning.schedule import MARGIN, short_context
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
    original: SpeechModel, model: SpeechModel, held_out: Sequence[Lesson], seen: Sequence[Lesson], context: TunedContext, step: int
) -> Look:
    """Measure `model` on both folds, and listen to it on the held-out one.

    For short contexts every other utterance is taken at a short one, its length and 64 positions, and the rest at the full one.
    """
    if context == "full":
        new, known = measure(original, model, held_out, listen=True), measure(original, model, seen)
        return Look(step=step, kl=new.kl, seen_kl=known.kl, seen_log_ratio=known.log_ratio, loops=new.loops)
    new, short = measure(original, model, held_out[1::2], listen=True), measure(original, model, held_out[0::2], short=True, listen=True)
    known, known_short = measure(original, model, seen[1::2]), measure(original, model, seen[0::2], short=True)
    return Look(
        step=step,
        kl=new.kl,
        seen_kl=known.kl,
        short_kl=short.kl,
        seen_short_kl=known_short.kl,
        seen_log_ratio=known.log_ratio,
        loops=tuple(sorted({*short.loops, *new.loops})),
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


@dataclass(frozen=True)
class Measured:
    """Means over the tokens of greedy transcripts, in nats: `kl`, ends included; `log_ratio`: of `log q - log p` at the tokens themselves.

    `loops`: ids of recordings that loop where the original's transcript does not; none where nothing was listened to.
    """

    kl: float
    log_ratio: float
    loops: tuple[str, ...]


def measure(original: SpeechModel, model: SpeechModel, lessons: Sequence[Lesson], *, short: bool = False, listen: bool = False) -> Measured:
    """Compare `model` with the original on its greedy transcripts. `short`: at short contexts; `listen`: decode, and look for loops."""
    total, ratio, tokens, words, loops = 0.0, 0.0, 0, 0, list[str]()
    waiting: list[tuple[Lesson, Encoded]] = []
    for lesson in lessons:
        context = short_context(model, len(lesson.recording), MARGIN) if short else None
        encoded = encode(model, lesson, context)
        (states,) = predicting_states(model, encoded, [lesson.transcripts[0]], lesson.language)
        log_q = head_log_probabilities(model, states)
        log_p = lesson.log_probabilities(original, 0)
        total += float(in_float64(token_kl(log_p, log_q)).sum())
        spoken = torch.tensor(lesson.transcripts[0], dtype=torch.int64, device=log_q.device).unsqueeze(1)
        ratio += float(in_float64(log_q[: len(spoken)].gather(1, spoken) - log_p[: len(spoken)].gather(1, spoken)).sum())
        words += len(spoken)
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
    return Measured(total / max(1, tokens), ratio / max(1, words), tuple(sorted(loops)))


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
