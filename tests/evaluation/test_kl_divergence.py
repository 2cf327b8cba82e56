"""Token divergences against slow references from their formulas, in float64, token by token and utterance by utterance."""

import math

import numpy as np
import pytest
import torch

from sottovoce.evaluation.kl_divergence import hidden_states, token_divergence, token_log_probabilities
from sottovoce.models.batching import Encoded
from sottovoce.models.whisper import Whisper
from tests.conftest import make_tiny

TRANSCRIPTS = [[65, 66, 67, 68, 69], [70], [], [71, 72, 73]]  # of different length: the batch is padded


def encode(model: Whisper) -> Encoded:
    noise = np.random.default_rng(0).standard_normal((len(TRANSCRIPTS), 16000)).astype(np.float32)
    return model.encode(model.features(list(noise)))


def log_softmax(logits: list[float]) -> list[float]:
    highest = max(logits)
    total = math.fsum(math.exp(value - highest) for value in logits)
    return [value - highest - math.log(total) for value in logits]


def slow_log_probabilities(model: Whisper) -> list[list[list[float]]]:
    """log p(v) at each token and at the end of each utterance: one forward pass in float64 per utterance, so without padding."""
    model.network.double()
    noise = np.random.default_rng(0).standard_normal((len(TRANSCRIPTS), 16000)).astype(np.float32)
    found = []
    for samples, transcript in zip(noise, TRANSCRIPTS, strict=True):
        features = model.features([samples])["input_features"].double()
        prompt = model.teacher_forcing([[]], None)[0]["decoder_input_ids"][0].tolist()
        logits = model.network(input_features=features, decoder_input_ids=torch.tensor([prompt + transcript])).logits[0]
        found.append([log_softmax(row) for row in logits[len(prompt) - 1 :].tolist()])
    model.network.float()
    return found


def slow_divergence(p: list[list[list[float]]], q: list[list[list[float]]]) -> list[float]:
    """Sum over the vocabulary of p (log p - log q), at every position of every utterance."""
    return [
        math.fsum(math.exp(a) * (a - b) for a, b in zip(p_row, q_row, strict=True))
        for p_utterance, q_utterance in zip(p, q, strict=True)
        for p_row, q_row in zip(p_utterance, q_utterance, strict=True)
    ]


def states(model: Whisper) -> list[torch.Tensor]:
    return hidden_states(model, encode(model), TRANSCRIPTS, None)


def test_divergence_is_that_of_the_formula() -> None:
    reference, model = make_tiny(seed=0), make_tiny(seed=1)
    computed = token_divergence(reference, states(reference), model, states(model))
    wanted = slow_divergence(slow_log_probabilities(reference), slow_log_probabilities(model))
    assert len(computed) == sum(len(transcript) + 1 for transcript in TRANSCRIPTS)
    assert min(wanted) > 1e-2
    np.testing.assert_allclose(computed.numpy(), wanted, rtol=1e-3)


def test_divergence_of_a_model_from_itself_is_zero() -> None:
    model = make_tiny()
    assert torch.equal(token_divergence(model, states(model), model, states(model)), torch.zeros(13))


def test_divergence_is_not_symmetric() -> None:
    """Swapped arguments give the other direction of the formula, not the same figures."""
    reference, model = make_tiny(seed=0), make_tiny(seed=1)
    swapped = token_divergence(model, states(model), reference, states(reference))
    wanted = slow_divergence(slow_log_probabilities(model), slow_log_probabilities(reference))
    np.testing.assert_allclose(swapped.numpy(), wanted, rtol=1e-3)
    forward = token_divergence(reference, states(reference), model, states(model))
    assert float((forward - swapped).abs().min()) > 1e-4


def test_padding_and_neighbors_change_nothing() -> None:
    """The states of an utterance in a padded batch are those of the utterance alone."""
    model = make_tiny()
    encoded, together = encode(model), states(model)
    for i, transcript in enumerate(TRANSCRIPTS):
        (alone,) = hidden_states(model, encoded[[i]], [transcript], None)
        assert together[i].shape == (len(transcript) + 1, model.network.config.d_model)
        torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("index", range(len(TRANSCRIPTS)))
def test_token_log_probabilities_are_those_of_the_formula(index: int) -> None:
    model = make_tiny()
    computed = token_log_probabilities(model, states(model)[index], TRANSCRIPTS[index])
    rows = slow_log_probabilities(model)[index]
    wanted = [row[token] for row, token in zip(rows, TRANSCRIPTS[index], strict=False)]
    np.testing.assert_allclose(computed.numpy(), wanted, atol=1e-3)
