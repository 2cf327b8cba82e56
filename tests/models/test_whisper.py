"""Greedy decoding of Whisper: limits, and utterances that go on alone."""

import numpy as np
import pytest

from sottovoce.errors import ModelError
from sottovoce.models.readiness import make_ready
from tests.conftest import make_tiny


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_only_what_reaches_the_limit_is_truncated() -> None:
    model = make_tiny()
    noise = np.random.default_rng(0).standard_normal((6, 16000)).astype(np.float32)
    encoded = model.encode(model.features(list(noise)))
    whole = model.greedy_decode(encoded, None)
    for limit in (3, 8):
        for (tokens, ended), (all_tokens, came_to_end) in zip(model.greedy_decode(encoded, None, limit), whole, strict=True):
            assert tokens == all_tokens[:limit]
            assert ended == (came_to_end and len(all_tokens) < limit)
    for i in range(len(noise)):
        assert model.greedy_decode(encoded[[i]], None) == whole[i : i + 1]


def test_end_tokens_beside_whispers_own_need_only_be_special() -> None:
    model = make_tiny()
    end, other = model.end_tokens[0], model.processor.tokenizer.convert_tokens_to_ids("<|startofprev|>")
    for ends in ([end, other], [other, end]):
        model.network.generation_config.eos_token_id = ends
        assert make_ready(model).end_tokens == tuple(ends)
    model.network.generation_config.eos_token_id = [other]
    with pytest.raises(ModelError, match=r"as <\|endoftext\|>, and its tokenizer has '<\|startofprev\|>' there"):
        make_ready(model)


def test_a_long_recording_ends_at_a_list_as_at_its_only_token() -> None:
    model, samples = make_tiny(), np.random.default_rng(0).standard_normal(5 * 16000).astype(np.float32)
    model.network.resize_token_embeddings(model.vocabulary_size + 101)  # timestamps
    wanted = model.decode_long(samples, None)
    assert wanted is not None
    model.network.generation_config.eos_token_id = [*model.end_tokens]
    assert model.decode_long(samples, None) == wanted


def test_looping_utterances_do_not_change_by_going_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny()
    encoded = model.encode(model.features([tone(1.0), tone(0.3), np.random.default_rng(0).standard_normal(9000).astype(np.float32)]))
    whole = model.decode(encoded, None)
    monkeypatch.setattr("sottovoce.models.whisper.FIRST_TOKENS", 3)
    assert model.decode(encoded, None) == whole
    assert max(map(len, whole)) > 3
