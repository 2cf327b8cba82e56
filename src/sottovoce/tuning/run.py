"""Tuning from beginning to end: step after step on the training fold, looks at the held-out one, the best look kept.

One step decodes the weights with the present moves, takes each utterance through the network by itself, gathers gradients in the decoded
weights, and hands them on to the moves once. So memory is that of one utterance, whatever the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.errors import CalibrationError, CheckpointError
from sottovoce.evaluation.kl_divergence import head_log_probabilities, predicting_states, token_kl
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.run_state import RunState
from sottovoce.quantization.tune_record import Look, TuneSettings
from sottovoce.system.memory import keep_freed_memory
from sottovoce.system.plain_data import from_plain, to_plain
from sottovoce.system.progress import Progress
from sottovoce.tuning.looks import best_look, encode, look
from sottovoce.tuning.numbers import Student, TunedNumbers, codes_digest
from sottovoce.tuning.schedule import Exercise, exercises, rate_share
from sottovoce.tuning.teacher import Lesson

STATE = "tuning"  # under which a stopped run is found
SEEN = 16  # utterances of the training fold that looks measure, at most
CLIP = 1.0  # largest norm of a step's gradient
BETAS = (0.9, 0.99)  # of AdamW: a run has a hundred steps or so


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuned:
    """The outcome: a network, its weights by layer, all looks, and the one that was kept."""

    network: Any
    weights: dict[str, QuantizedTensor]
    numbers: TunedNumbers
    looks: tuple[Look, ...]
    best: Look


class Tuning:
    """A run in progress. Make one, then call `run`."""

    def __init__(
        self,
        original: SpeechModel,
        numbers: TunedNumbers,
        training: Sequence[Lesson],
        held_out: Sequence[Lesson],
        settings: TuneSettings,
        rates: tuple[float, float],
        *,
        seed: int,
    ) -> None:
        self.original, self.numbers, self.settings = original, numbers, settings
        self._training, self._held_out, self._seen = training, held_out, training[:SEEN]
        self._steps = exercises(original, training, settings, seed)
        self._student = Student(numbers)
        groups = [{"params": moves} for moves in (numbers.scale_moves(), numbers.float_moves()) if moves]
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, weight_decay=0.0)
        self._group_rates = [rate for rate, moves in zip(rates, (numbers.scale_moves(), numbers.float_moves()), strict=True) if moves]
        self._looks, self._best = list[Look](), [move.detach().clone() for move in numbers.all()]

    def run(self, state: RunState, progress: Progress) -> Tuned:
        """Take all steps, or those that a stopped run has left over. Raises `CalibrationError` for a loss that is no number."""
        first = self._resume(state)
        total, between = self.settings.n_steps, self.settings.steps_between_looks
        with keep_freed_memory():
            if not self._looks:
                self._look(0, progress)
            for step in range(first, total):
                progress("tuning", step, total, self._so_far())
                self._step(step)
                if (step + 1) % between == 0 or step + 1 == total:
                    self._look(step + 1, progress)
                    self._store(state, step + 1)
            progress("tuning", total, total, self._so_far())
        self.numbers.restore(self._best)
        network, weights = self.numbers.stored()
        if codes_digest(weights) != self.numbers.codes:
            raise CheckpointError("codes changed while scales were tuned, which must not happen; report this")
        return Tuned(network=network, weights=weights, numbers=self.numbers, looks=tuple(self._looks), best=best_look(self._looks))

    def _step(self, step: int) -> None:
        with torch.enable_grad():
            share = rate_share(step, self.settings.n_steps)
            for group, rate in zip(self._optimizer.param_groups, self._group_rates, strict=True):
                group["lr"] = rate * share
            self._optimizer.zero_grad(set_to_none=True)
            decoded, leaves = self._student.set()
            loss = self._gather(self._steps[step])
            if not loss < float("inf"):
                raise CalibrationError(f"the loss of step {step + 1} is no number ({loss}); give a smaller rate")
            torch.autograd.backward(decoded, [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])
            if self.settings.prior:
                (self.settings.prior * self.numbers.mean_square()).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.numbers.all(), CLIP)
            self._optimizer.step()

    def _gather(self, step: Sequence[Exercise]) -> float:
        """Gather the gradients of the loss of some utterances in the leaves; return the loss."""
        tokens = sum(len(self._training[one.lesson].states[one.transcript]) for one in step)
        total = 0.0
        for one in step:
            lesson = self._training[one.lesson]
            kl, error = self.losses(lesson, one)
            loss = kl / tokens + self.settings.encoder_weight * error / len(step)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def losses(self, lesson: Lesson, exercise: Exercise) -> tuple[Tensor, Tensor]:
        """Return the KL summed over an utterance's tokens, and the relative squared error of its encoder states where there is audio."""
        model = self._student.model
        encoded = encode(model, lesson, exercise.context)
        (states,) = predicting_states(model, encoded, [lesson.transcripts[exercise.transcript]], lesson.language)
        kl = token_kl(lesson.log_probabilities(self.original, exercise.transcript), head_log_probabilities(model, states))
        return kl.sum(), relative_error(encoded.states[0, : len(lesson.encoder_states)], lesson.encoder_states)

    def _look(self, step: int, progress: Progress) -> None:
        progress("tuning", step, self.settings.n_steps, self._so_far())
        network, _ = self.numbers.stored()
        model = self.numbers.model.with_network(network)
        self._looks.append(look(self.original, model, self._held_out, self._seen, self.settings.context, step))
        if best_look(self._looks) is self._looks[-1]:
            self._best = [move.detach().clone() for move in self.numbers.all()]

    def _so_far(self) -> str:
        """What the progress bar says beside: the KL of both folds at the start and at the last look."""
        if not self._looks:
            return ""
        first, last = self._looks[0], self._looks[-1]
        if last.short_kl is not None and first.short_kl is not None:
            return f"held-out KL at short contexts {first.short_kl:.4f} -> {last.short_kl:.4f}, full {first.kl:.4f} -> {last.kl:.4f}"
        return f"KL held out {first.kl:.4f} -> {last.kl:.4f}, seen {first.seen_kl:.4f} -> {last.seen_kl:.4f}"

    def _store(self, state: RunState, step: int) -> None:
        tensors = dict[str, Tensor]()
        for i, (move, best) in enumerate(zip(self.numbers.all(), self._best, strict=True)):
            kept = self._optimizer.state[move]
            tensors |= {f"{i}.move": move.detach(), f"{i}.best": best, f"{i}.first": kept["exp_avg"], f"{i}.second": kept["exp_avg_sq"]}
        state.set_tensors(STATE, {name: tensor.cpu() for name, tensor in tensors.items()}, {"step": step, "looks": to_plain(self._looks)})

    def _resume(self, state: RunState) -> int:
        """Take over what a stopped run had; return the next step."""
        found = state.tensors(STATE)
        if found is None:
            return 0
        tensors, about = found
        moves = self.numbers.all()
        self.numbers.restore([tensors[f"{i}.move"] for i in range(len(moves))])
        self._best = [tensors[f"{i}.best"].to(move.device) for i, move in enumerate(moves)]
        self._looks = list(from_plain(tuple[Look, ...], about["looks"]))
        step = int(about["step"])
        for i, move in enumerate(moves):
            self._optimizer.state[move] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"{i}.first"].clone().to(move.device),
                "exp_avg_sq": tensors[f"{i}.second"].clone().to(move.device),
            }
        return step


def relative_error(states: Tensor, wanted: Tensor) -> Tensor:
    """Return `|states - wanted|^2 / |wanted|^2` over all positions and channels of `[T, d]`."""
    return (states - wanted).square().sum() / wanted.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
