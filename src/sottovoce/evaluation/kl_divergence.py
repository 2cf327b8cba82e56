"""Kullback-Leibler divergence of a model's token distributions from a reference model's, token for token on the same transcripts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sottovoce.models.batching import Encoded
from sottovoce.models.speech_model import SpeechModel


def predicting_states(model: SpeechModel, encoded: Encoded, transcripts: Sequence[Sequence[int]], language: str | None) -> list[Tensor]:
    """Return the head's inputs, `[len(transcript) + 1, d]` per utterance, at which its tokens and its end are predicted; with gradients.

    `transcripts`: token ids, given to the decoder as they are (teacher forcing).
    """
    inputs, mask = model.teacher_forcing(transcripts, language)
    states = model.decoder_states(encoded, inputs)
    first = model.prompt_length(language) - 1  # rows before the last prompt token predict the prompt, which decoding never does
    return [states[i, first : int(mask[i].sum())] for i in range(len(transcripts))]


@torch.no_grad()
def hidden_states(model: SpeechModel, encoded: Encoded, transcripts: Sequence[Sequence[int]], language: str | None) -> list[Tensor]:
    """Return copies of `predicting_states`, without gradients."""
    return [states.clone() for states in predicting_states(model, encoded, transcripts, language)]


def head_log_probabilities(model: SpeechModel, states: Tensor) -> Tensor:
    """Return the log-probabilities of all tokens at the head's inputs `states` `[T, d]`, in float32; `[T, vocabulary]`; with gradients.

    Of the plain softmax over the whole vocabulary: what decoding suppresses is not taken out.
    """
    return torch.log_softmax(model.module(model.head)(states).float(), dim=-1)


def token_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) = sum_v p(v) (log p(v) - log q(v)) in nats at every token; `log_p`, `log_q` `[T, vocabulary]`; `[T]`."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
def token_divergence(reference: SpeechModel, reference_states: Sequence[Tensor], model: SpeechModel, states: Sequence[Tensor]) -> Tensor:
    """Return KL(reference || model) in nats at every token, utterances joined; `[n_tokens]`.

    `reference_states`, `states`: the heads' inputs on the same transcripts (see `hidden_states`), `[n_i, d]` each.
    """
    pairs = zip(reference_states, states, strict=True)
    return torch.cat([token_kl(head_log_probabilities(reference, wanted), head_log_probabilities(model, got)) for wanted, got in pairs])


@torch.no_grad()
def token_log_probabilities(model: SpeechModel, states: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return the natural log-probability of each of `tokens` at the head's inputs `states` `[>= n_tokens, d]`; `[n_tokens]`."""
    rows = head_log_probabilities(model, states[: len(tokens)])
    return rows.gather(1, torch.tensor(list(tokens), dtype=torch.int64, device=rows.device).unsqueeze(1)).squeeze(1)
