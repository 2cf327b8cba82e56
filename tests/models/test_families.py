"""Families without weights offline, on tiny random models: Qwen3-ASR, and three that go the generic way."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSpeechSeq2Seq
from transformers.utils import logging as transformers_logging

from sottovoce import api
from sottovoce.core.affine import Affine
from sottovoce.core.awq import divide_outputs, scale_inputs
from sottovoce.core.formats import format_named
from sottovoce.data.load import load_data
from sottovoce.errors import ExportError, ModelError
from sottovoce.evaluation.recognizer import TorchRecognizer
from sottovoce.evaluation.transcribe import transcribe_data
from sottovoce.models.generic import Generic
from sottovoce.models.readiness import make_ready
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.batches import PositionWeights, make_batches
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.collect import collect_statistics
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe, Rule
from tests.conftest import make_tiny, make_tiny_moonshine, planned, quantized, windows

from .zoo import make_cohere, make_moonshine_streaming, make_qwen, make_speech_to_text

MAKERS = [make_qwen, make_speech_to_text, make_moonshine_streaming, make_cohere]
GENERIC = MAKERS[1:]
GRID = Affine(bits=4, group_size=32)
Maker = Callable[[], SpeechModel]


def recordings(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(0.1 * random.standard_normal(n)).astype(np.float32) for n in lengths]


@pytest.mark.parametrize("maker", MAKERS)
def test_an_utterance_is_encoded_and_decoded_as_if_alone(maker: Maker) -> None:
    model, heard = maker(), recordings(9600, 24000, 17000)
    together = model.encode(model.features(heard))
    decoded = model.greedy_decode(together, None, 10)
    for i, samples in enumerate(heard):
        alone = model.encode(model.features([samples]))
        torch.testing.assert_close(together.states[i, : alone.states.shape[1]], alone.states[0], rtol=1e-4, atol=1e-5)
        assert model.greedy_decode(alone, None, 10)[0] == decoded[i]


@pytest.mark.parametrize("maker", [make_tiny, make_tiny_moonshine, *MAKERS])
def test_decoding_is_quiet_and_leaves_verbosity_alone(maker: Maker) -> None:
    """Whatever the caller has: notices on every batch, about settings that are meant so, would bury all else."""
    model, before, noticed = maker(), transformers_logging.get_verbosity(), list[str]()
    model.network.generation_config.max_length = 100  # as real models have it
    handler = logging.Handler()
    handler.emit = lambda record: noticed.append(record.getMessage())  # type: ignore[method-assign]
    transformers_logging.set_verbosity_warning()
    transformers_logging.add_handler(handler)
    try:
        model.decode(model.encode(model.features(recordings(9600))), None, 5)
        assert transformers_logging.get_verbosity() == transformers_logging.WARNING
    finally:
        transformers_logging.remove_handler(handler)
        transformers_logging.set_verbosity(before)
    assert noticed == []


@pytest.mark.parametrize("maker", [make_tiny, make_tiny_moonshine, *MAKERS])
def test_the_end_may_be_one_token_or_a_list(maker: Maker) -> None:
    model, heard = maker(), recordings(9600, 24000)
    settings, encoded = model.network.generation_config, model.encode(model.features(heard))
    (end,) = model.end_tokens
    settings.eos_token_id = end
    wanted = model.greedy_decode(encoded, None, 10)
    inputs, _ = model.teacher_forcing([[40, 50], [60]], None)
    settings.eos_token_id = [end]
    if maker is not make_cohere:  # whose configuration takes one alone
        model.network.config.eos_token_id = [end]
    assert make_ready(model).greedy_decode(encoded, None, 10) == wanted
    assert torch.equal(model.teacher_forcing([[40, 50], [60]], None)[0]["decoder_input_ids"], inputs["decoder_input_ids"])
    assert TorchRecognizer(model).recognize(heard, None, confidence=True).recognitions
    longest = max((tokens for tokens, _ in wanted), key=len)
    settings.eos_token_id = [end, longest[-1]]
    assert model.end_tokens == (end, longest[-1])
    for (tokens, ended), (whole, came_to_end) in zip(model.greedy_decode(encoded, None, 10), wanted, strict=True):
        stops = longest[-1] in whole
        assert (tokens, ended) == (whole[: whole.index(longest[-1])] if stops else whole, stops or came_to_end)


def test_no_end_at_all_is_refused() -> None:
    model = make_tiny_moonshine()
    model.network.generation_config.eos_token_id = []
    with pytest.raises(ModelError, match=r"eos_token_id is \[\]; wanted a token id, or a list of them"):
        make_ready(model)


def test_qwen_hears_what_its_processor_and_network_hear() -> None:
    model, (samples,) = make_qwen(), recordings(24000)
    asked = model.processor.apply_transcription_request(audio=samples, language="en")
    out = model.network.generate(**asked, do_sample=False, max_new_tokens=10)
    ((tokens, _),) = model.greedy_decode(model.encode(model.features([samples])), "en", 10)
    assert out[0, asked["input_ids"].shape[1] :].tolist() == tokens
    inputs, _ = model.teacher_forced_inputs([samples], [tokens], "en")
    prompt = asked["input_ids"].shape[1]
    assert torch.equal(inputs["input_ids"][0, :prompt], asked["input_ids"][0])
    assert torch.equal(inputs["input_features"], asked["input_features"])


@pytest.mark.parametrize("maker", GENERIC)
def test_a_generic_model_hears_what_its_network_hears(maker: Maker) -> None:
    model, (samples,) = maker(), recordings(24000)
    assert isinstance(model, Generic)
    prompt = model._prompt(None)
    out = model.network.generate(model._features_of(samples), decoder_input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=10)
    ((tokens, _),) = model.greedy_decode(model.encode(model.features([samples])), None, 10)
    assert out[0, len(prompt) :].tolist()[: len(tokens)] == tokens


@pytest.mark.parametrize("maker", MAKERS)
def test_teacher_forcing_gives_the_networks_own_logits(maker: Maker) -> None:
    model, (samples,) = maker(), recordings(24000)
    tokens = [40, 50, 60, 70]
    logits = model.network(**model.teacher_forced_inputs([samples], [tokens], None)[0]).logits[0]
    inputs, _ = model.teacher_forcing([tokens], None)
    states = model.decoder_states(model.encode(model.features([samples])), inputs)[0]
    torch.testing.assert_close(model.module(model.head)(states), logits[-len(states) :])


@pytest.mark.parametrize("maker", MAKERS)
def test_every_layer_is_calibrated_on_what_it_sees(maker: Maker) -> None:
    model, heard = maker(), recordings(9600, 24000)
    batches = make_batches(model, windows(heard, [[40, 50], [60]], [0, 1]), batch_size=8, positions=PositionWeights(subsampling=3))
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        model.module(layer.name).register_forward_pre_hook(
            lambda _m, args, name=layer.name: seen.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for layer in model.layers()
    ]
    for samples, transcript in zip(heard, [[40, 50], [60]], strict=True):
        model.network(**model.teacher_forced_inputs([samples], [transcript], None)[0])
    for hook in hooks:
        hook.remove()
    for layer, inputs in collect_statistics([model.network], batches, model.layers()):
        rows = seen[layer.name]
        if layer.positions == "tokens":  # Qwen's head: the transcript and its end alone
            rows = [rows[0][-3:], rows[1][-2:]]
        for fold, mine in zip(inputs.folds, rows, strict=True):
            wanted = mine.double().T @ mine.double()
            torch.testing.assert_close(fold.moments.hessian.matrix, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("maker", MAKERS)
def test_quantized_saved_loaded_and_heard_the_same(maker: Maker, speech_folder: Path, tmp_path: Path) -> None:
    model, data = maker(), load_data(speech_folder).take(5)
    # One width, so that `transformers` reads it too; and Moonshine-streaming's frames of 80 samples fit no group of 32.
    rules = {make_qwen: (Rule(match="audio_tower", bits=4),), make_moonshine_streaming: (Rule(match="embedder", bits=16),)}
    recipe = Recipe(method=method_named("fade"), format=GRID, rules=rules.get(maker, ()))
    result = api.quantize(model, tmp_path / "out", recipe=recipe, calibration=data)
    assert set(result.weights) == {layer.name for layer in model.layers() if "embedder" not in layer.name}
    loaded = api.load(tmp_path / "out")
    assert type(loaded) is type(model)
    mine, theirs = (transcribe_data(m, data).transcripts for m in (result.model, loaded))
    assert [t.tokens for t in mine] == [t.tokens for t in theirs]
    # and `transformers` alone loads the same weights
    network = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    inputs = model.teacher_forced_inputs([data.utterances[0].samples()], [[40, 50]], None)[0]
    assert torch.equal(network(**inputs).logits, loaded.network(**inputs).logits)
    for format in ("gguf", "onnx", "ggml"):  # noqa: A001
        with pytest.raises(ExportError, match=model.network.config.model_type):
            api.export(tmp_path / "out", format, tmp_path / f"file.{format}")


@pytest.mark.parametrize("maker", [make_tiny, make_tiny_moonshine, make_qwen])
def test_a_layer_writes_into_the_stream_it_names(maker: Maker) -> None:
    """What stands before one writer, with its outputs added, stands before the next."""
    model = maker()
    writers = [layer for layer in model.layers() if layer.residual is not None]
    assert {layer.name.rsplit(".", 1)[-1] for layer in writers} <= {"out_proj", "o_proj", "fc2", "down_proj"}
    streams, outputs = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for layer in writers:
        model.module(layer.residual).register_forward_pre_hook(lambda _m, args, name=layer.name: streams.update({name: args[0].clone()}))
        model.module(layer.name).register_forward_hook(lambda _m, _args, out, name=layer.name: outputs.update({name: out.clone()}))
    model.network(**model.teacher_forced_inputs(recordings(24000), [[40, 50, 60]], None)[0])
    assert streams.keys() == outputs.keys() == {layer.name for layer in writers}
    for now, then in zip(writers, writers[1:], strict=False):
        if (now.part == "encoder") == (then.part == "encoder"):
            summed = streams[now.name] + outputs[now.name].reshape(streams[now.name].shape)
            torch.testing.assert_close(streams[then.name], summed)


def test_qwens_audio_tower_keeps_eight_bits_unless_asked() -> None:
    model = make_qwen()
    plan = planned(model, Recipe(format=GRID))
    assert {layer.format.bits for layer in plan.layers if "audio_tower" in layer.name} == {8}
    assert {layer.format.bits for layer in plan.layers if "audio_tower" not in layer.name} == {4}
    asked = planned(model, Recipe(format=GRID, rules=(Rule(match="audio_tower", bits=3),)))
    assert {layer.format.bits for layer in asked.layers if "audio_tower" in layer.name} == {3}


@pytest.mark.parametrize("name", ["q4_1", "iq4_nl", "nf4"])
def test_qwens_audio_tower_keeps_eight_bits_beside_any_format(name: str) -> None:
    plan = planned(make_qwen(), Recipe(format=format_named(name)))
    assert {layer.format.code_bits for layer in plan.layers if "audio_tower" in layer.name} == {8}
    assert {layer.format for layer in plan.layers if "audio_tower" not in layer.name} == {format_named(name)}


def test_qwens_awq_mappings_leave_the_network_as_it_is(speech_folder: Path) -> None:
    model, (samples,) = make_qwen(), recordings(20000)
    inputs = model.teacher_forced_inputs([samples], [[40, 50, 60]], None)[0]
    before = model.network(**inputs).logits
    for fold in model.awq_mappings():
        source, first = model.module(fold.source), model.module(fold.targets[0])
        scales = 0.5 + torch.rand(first.weight.shape[1], generator=torch.Generator().manual_seed(len(fold.source)))
        weight, bias = divide_outputs(source.weight, getattr(source, "bias", None), scales)
        source.weight = torch.nn.Parameter(weight)
        if bias is not None:
            source.bias = torch.nn.Parameter(bias)
        for name in fold.targets:
            target = model.module(name)
            target.weight = torch.nn.Parameter(scale_inputs(target.weight, scales))
    torch.testing.assert_close(model.network(**inputs).logits, before, rtol=1e-3, atol=1e-3)
    speech = prepare_speech(make_qwen(), load_data(speech_folder).take(4))
    result = quantized(make_qwen(), Recipe(method=method_named("awq"), format=GRID), speech)
    assert bool(torch.isfinite(result.model.network(**inputs).logits).all())


def test_what_a_generic_model_lacks_is_said() -> None:
    with pytest.raises(ModelError, match="choose another method"):
        planned(make_speech_to_text(), Recipe(method=method_named("awq"), format=GRID))
    qwen = make_qwen()
    with pytest.raises(ModelError, match="no encoder and decoder of its own"):
        Generic(qwen.network, qwen.processor, "qwen")
    plain = make_speech_to_text()
    plain.network.set_output_embeddings(torch.nn.Identity())
    with pytest.raises(ModelError, match="no linear output head"):
        Generic(plain.network, plain.processor, "plain")
