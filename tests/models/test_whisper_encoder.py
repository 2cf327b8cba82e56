"""Whisper on less than its window: against a network whose window is that short, and in batches of several lengths."""

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from sottovoce.errors import ModelError
from sottovoce.models.batching import Encoded
from sottovoce.models.whisper import Whisper
from sottovoce.models.whisper_encoder import encode_window, masked_cross_attention
from tests.conftest import make_tiny, make_tiny_moonshine


def narrow(model: Whisper, positions: int) -> WhisperForConditionalGeneration:
    """The same weights in a network of `transformers` whose window is `positions` long, with the first rows of the position table."""
    config = WhisperConfig(**(model.network.config.to_dict() | {"max_source_positions": positions}))
    network = WhisperForConditionalGeneration(config).eval().requires_grad_(False)
    state = model.network.state_dict()
    table = "model.encoder.embed_positions.weight"
    network.load_state_dict(state | {table: state[table][:positions]})
    network.tie_weights()
    network.generation_config = model.network.generation_config
    return network


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(16000 * seconds))).astype(np.float32)


@pytest.mark.parametrize("positions", [1, 5, 37, 99])
def test_a_part_of_the_window_is_a_network_with_that_window(tiny: Whisper, positions: int) -> None:
    features = tiny.features([noise(0.7), noise(1.9, 1)])
    short = tiny.shortened(features, positions)
    assert short["input_features"].shape == (2, 16, 2 * positions)
    reference = Whisper(narrow(tiny, positions), tiny.processor, "narrow")
    states = tiny.encode(short).states
    wanted = reference.encode(short).states
    assert states.shape == (2, positions, 64)
    assert torch.allclose(states, wanted, atol=1e-5)
    assert tiny.decode(Encoded(states), None) == reference.decode(Encoded(wanted), None)


@pytest.mark.parametrize(("seconds", "positions"), [(0.001, 1), (0.1, 5), (0.5, 25), (0.5, 26), (0.5, 41), (1.98, 99)])
def test_features_of_a_part_are_those_of_the_whole_window_up_to_there(tiny: Whisper, seconds: float, positions: int) -> None:
    recordings = [noise(seconds), 0.01 * noise(seconds / 2, 1)]
    whole = tiny.shortened(tiny.features(recordings), positions)["input_features"]
    short = tiny.short_features(recordings, positions)["input_features"]
    assert short.shape == (2, 16, 2 * positions)
    assert torch.allclose(short, whole, atol=1e-5)


def test_the_whole_window_is_that_of_transformers(tiny: Whisper) -> None:
    features = tiny.features([noise(1.5)])
    assert torch.equal(tiny.shortened(features, 100)["input_features"], features["input_features"])
    whole = encode_window(tiny.network.model.encoder, features["input_features"])
    assert torch.allclose(whole, tiny.encode(features).states, atol=1e-6)


def test_outputs_of_several_lengths_are_decoded_together_as_each_alone() -> None:
    model = make_tiny(seed=3)
    parts = [model.encode(model.shortened(model.features([noise(1.0, seed)]), positions)) for seed, positions in enumerate((20, 55, 99))]
    parts.append(model.encode(model.features([noise(1.0, 9)])))
    together = Encoded.joined(parts)
    assert together.mask is not None
    assert together.mask.sum(1).tolist() == [20, 55, 99, 100]
    alone = [model.decode(part, None)[0] for part in parts]
    assert model.decode(together, None) == alone
    assert len(set(map(tuple, alone))) > 1
    inputs, _ = model.teacher_forcing(alone, None)
    states = model.decoder_states(together, inputs)
    for i, part in enumerate(parts):
        own, _ = model.teacher_forcing([alone[i]], None)
        count = own["decoder_input_ids"].shape[1]
        assert torch.allclose(states[i, :count], model.decoder_states(part, own)[0], atol=1e-4)
    # The mask does something: with it left out, the padding is heard.
    unmasked = model.decoder_states(Encoded(together.states), inputs)
    assert not torch.allclose(unmasked[0], states[0], atol=1e-3)


def test_the_mask_is_gone_afterwards(tiny: Whisper) -> None:
    decoder = tiny.network.model.decoder
    with pytest.raises(KeyError), masked_cross_attention(decoder, torch.ones(1, 3, dtype=torch.bool)):
        raise KeyError
    assert not any(layer._forward_pre_hooks for layer in decoder.layers)


def test_a_family_without_a_window_says_so() -> None:
    model = make_tiny_moonshine()
    assert model.window_positions is None
    with pytest.raises(ModelError, match="'moonshine' model has no window of fixed length"):
        model.shortened({}, 10)
