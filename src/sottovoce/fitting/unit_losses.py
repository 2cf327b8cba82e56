"""What each unit costs: the loss of a model against the same model with one unit of another.

At the operating point the model is quantized, and the unit is put back to full precision.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.evaluation.held_out import HeldOutSpeech, half_variance
from sottovoce.fitting.attempt import layers_restored
from sottovoce.fitting.passes import Passes
from sottovoce.models.block_replay import BlockReplay, blocks_of
from sottovoce.models.parameters import copy_layer
from sottovoce.models.speech_model import SpeechModel
from sottovoce.system.devices import in_float64
from sottovoce.system.progress import Progress


@dataclass(frozen=True, kw_only=True)
class UnitLoss:
    """`own`: half the variance of what the unit does to the logits, in nats: never negative, KL to second order of the unit alone.
    `marginal`: the KL that goes away with it, cross terms with all other units included; may be negative."""

    own: float
    marginal: float


class ChangeMeter:
    """A quantized model on held-out speech, measured again when some of its layers have changed: from the first changed block on.

    `log_q` `[n_tokens, vocabulary]`, `kl`: the model as it was when the meter was made. `passes`: to which its own are added.
    """

    @torch.no_grad()
    def __init__(self, model: SpeechModel, speech: HeldOutSpeech, passes: Passes) -> None:
        self.model, self.speech, self.passes = model, speech, passes
        layers = model.layers()
        self._in_encoder = {layer.name for layer in layers if layer.part == "encoder"}
        names = [[layer.name for layer in layers if (layer.part == "encoder") == encoder] for encoder in (True, False)]
        self._encoder, self._decoder = (BlockReplay(model.network, blocks_of(half)) for half in names)
        with self._encoder.record():
            self._encoded = speech.encode(model)
        with self._decoder.record():
            self._states = speech.states(model, self._encoded)
        self.log_q = speech.log_probabilities(model, self._states)
        self.kl = float(in_float64(speech.divergence(self.log_q)).mean())
        passes.add(speech.n_utterances, speech.n_utterances)

    @torch.no_grad()
    def changed(self, layers: Sequence[str]) -> Tensor:
        """Return the log-probabilities when `layers` are no longer what they were: `[n_tokens, vocabulary]`."""
        model, speech = self.model, self.speech
        if encoder := [layer for layer in layers if layer in self._in_encoder]:
            block = self._encoder.first(encoder)
            self.passes.add(speech.n_utterances * self._encoder.share_from(block), speech.n_utterances)
            with self._encoder.replay(block):
                states = speech.states(model, speech.encode(model))
        elif list(layers) == [model.head] and not model.tied:
            states = self._states
        else:
            block = None if model.head in layers and model.tied else self._decoder.first(layers)
            self.passes.add(0.0, speech.n_utterances * self._decoder.share_from(block))
            with self._decoder.replay(block):
                states = speech.states(model, self._encoded)
        return speech.log_probabilities(model, states)


def measure_unit_losses(
    other: SpeechModel,
    meter: ChangeMeter,
    units: Mapping[str, Sequence[str]],
    *,
    known: Mapping[str, UnitLoss],
    on_loss: Callable[[str, UnitLoss], None],
    progress: Progress,
) -> dict[str, UnitLoss]:
    """Return the loss of each unit (`units`: names of its layers) in the meter's model, against the unit as it is in `other`.

    One pass of the decoder for each unit, and of the encoder for those in it, from their block on. `known`: losses that are not
    measured again; `on_loss` is told the others.
    """
    losses = dict(known)
    for i, (name, layers) in enumerate(units.items()):
        progress("measuring units", i, len(units))
        if name in losses:
            continue
        with layers_from(other, meter.model, layers):
            log_other = meter.changed(layers)
        losses[name] = UnitLoss(
            own=float(in_float64(half_variance(log_other, meter.log_q)).mean()),
            marginal=meter.kl - float(in_float64(meter.speech.divergence(log_other)).mean()),
        )
        on_loss(name, losses[name])
    progress("measuring units", len(units), len(units))
    return losses


@contextmanager
def layers_from(other: SpeechModel, model: SpeechModel, layers: Sequence[str]) -> Iterator[None]:
    """Give some layers of `model` the parameters of `other`, and theirs back in the end."""
    with layers_restored(model, layers):
        for name in layers:
            copy_layer(model, other, name)
        yield
