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
    first = model.prompt_length - 1  # rows before the last prompt token predict the prompt, which decoding never does
    return [states[i, first : int(mask[i].sum())] for i in range(len(transcripts))]


@torch.no_grad()
def hidden_states(model: SpeechModel, encoded: Encoded, transcripts: Sequence[Sequence[int]], language: str | None) -> list[Tensor]:
    """Return copies of `predicting_states`, without gradients."""
    return [states.clone() for states in predicting_states(model, encoded, transcripts, language)]


@torch.no_grad()
def token_divergence(reference: SpeechModel, reference_states: Sequence[Tensor], model: SpeechModel, states: Sequence[Tensor]) -> Tensor:
    """Return KL(reference || model) = sum_v p(v) (log p(v) - log q(v)) in nats at every token, utterances joined; `[n_tokens]`.

    `reference_states`, `states`: the heads' inputs on the same transcripts (see `hidden_states`), `[n_i, d]` each.
    """
    head, other_head = reference.module(reference.head), model.module(model.head)
    divergences = []
    for wanted, got in zip(reference_states, states, strict=True):
        p, q = torch.log_softmax(head(wanted).float(), dim=-1), torch.log_softmax(other_head(got).float(), dim=-1)
        divergences.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(divergences)


@torch.no_grad()
def token_log_probabilities(model: SpeechModel, states: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return the natural log-probability of each of `tokens` at the head's inputs `states` `[>= n_tokens, d]`; `[n_tokens]`.

    Of the plain softmax over the whole vocabulary: what decoding suppresses is not taken out.
    """
    rows = torch.log_softmax(model.module(model.head)(states[: len(tokens)]).float(), dim=-1)
    return rows.gather(1, torch.tensor(list(tokens), dtype=torch.int64, device=rows.device).unsqueeze(1)).squeeze(1)
