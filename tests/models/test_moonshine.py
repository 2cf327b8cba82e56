"""Moonshine: recordings of any length, every method, the folder, GGUF and ONNX; on random weights."""

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from sottovoce import api
from sottovoce.backends.onnx_runtime.layout import DECODER, ENCODER
from sottovoce.backends.onnx_runtime.writer import write_onnx
from sottovoce.backends.registry import open_runtime, target_named
from sottovoce.backends.source import Source, open_source
from sottovoce.backends.transcribe_cpp.writer import write_gguf
from sottovoce.core.affine import Affine
from sottovoce.data.load import load_data
from sottovoce.errors import ModelError, RecipeError
from sottovoce.evaluation.recognizer import decoding_settings
from sottovoce.evaluation.transcribe import transcribe_data
from sottovoce.models.load import load_model
from sottovoce.models.moonshine import Moonshine
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.methods import METHODS, method_named
from sottovoce.quantization.pipeline import quantize_model
from sottovoce.quantization.plan import Plan, make_plan
from sottovoce.quantization.recipe import Recipe
from tests.conftest import make_tiny, make_tiny_moonshine

GGUF = target_named("transcribe.cpp")


def planned(model: Moonshine, recipe: Recipe) -> Plan:
    return make_plan(model, recipe, target_named("compressed-tensors"))


def recordings(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(0.1 * random.standard_normal(n)).astype(np.float32) for n in lengths]


def test_an_utterance_is_encoded_and_decoded_as_if_alone() -> None:
    model, heard = make_tiny_moonshine(), recordings(9000, 30000, 300, 17000)
    together = model.encode(model.features(heard))
    mask = model._frame_mask(heard)
    assert together.mask is not None
    assert torch.equal(together.mask, mask)
    decoded = model.greedy_decode(together, None)
    for i, samples in enumerate(heard):
        alone = model.encode(model.features([samples]))
        torch.testing.assert_close(together.states[i][mask[i]], alone.states[0])
        assert model.greedy_decode(alone, None)[0] == decoded[i]
        # and as `transformers` itself does it
        if len(samples) > 1024:
            out = model.network.generate(torch.from_numpy(samples).unsqueeze(0), max_new_tokens=model.max_new_tokens(None))
            assert model.text(out[0].tolist()) == model.text(decoded[i][0])


def test_tokens_a_second_cut_each_transcript_at_its_own_length() -> None:
    """As a loop that counts would: decoding goes on to the limit of the longest, and each row is cut at its own."""
    model, heard = make_tiny_moonshine(), recordings(9000, 30000, 300, 17000)
    free = model.greedy_decode(model.encode(model.features(heard)), None)
    assert max(len(tokens) for tokens, _ in free) > 12
    for rate in (1.0, 3.5, 6.0, 13.0, 1000.0):
        limited = model.with_tokens_per_second(rate)
        together = limited.greedy_decode(limited.encode(limited.features(heard)), None)
        for samples, whole, got in zip(heard, free, together, strict=True):
            frames = model._frames(max(len(samples), 1024))
            steps = min(math.ceil(rate * frames * 0.024), model.max_new_tokens(None))
            tokens, ended = whole
            assert got == (tokens[:steps], ended and len(tokens) < steps), (rate, len(samples))
            assert limited.greedy_decode(limited.encode(limited.features([samples])), None) == [got]
    assert model.tokens_per_second is None
    assert limited.with_network(model.network).tokens_per_second == 1000.0


@pytest.mark.parametrize("limit", [0.0, -1.0, math.inf, math.nan])
def test_no_limit_of_tokens_is_refused(limit: float) -> None:
    with pytest.raises(ModelError, match="tokens a second is no limit; give a number above 0"):
        make_tiny_moonshine().with_tokens_per_second(limit)


def test_tokens_a_second_are_refused_where_all_audio_is_padded_to_one_length() -> None:
    with pytest.raises(ModelError, match="'whisper' models do not tell how long the audio is, so 6 tokens a second is no limit"):
        make_tiny().with_tokens_per_second(6)


def test_teacher_forcing_predicts_what_was_decoded() -> None:
    model = make_tiny_moonshine()
    encoded = model.encode(model.features(recordings(9000, 20000)))
    decoded = model.greedy_decode(encoded, None)
    inputs, mask = model.teacher_forcing([tokens for tokens, _ in decoded], None)
    states = model.decoder_states(encoded, inputs)
    for i, (tokens, _) in enumerate(decoded):
        predicted = model.module(model.head)(states[i, : int(mask[i].sum())]).argmax(-1).tolist()
        assert predicted[: len(tokens)] == tokens


def test_words_and_tokens() -> None:
    model = make_tiny_moonshine()
    assert model.text(model.tokens("the cat")) == "the cat"
    assert model.text(model.tokens("caf\u00e9")) == "caf\u00e9"  # by bytes
    assert model.prompt_length(None) == 1


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_solves_every_layer_once(method: str, speech_folder: Path) -> None:
    model = make_tiny_moonshine()
    speech = prepare_speech(model, load_data(speech_folder).take(6))
    recipe = Recipe(method=method_named(method), format=Affine(bits=3, group_size=32))
    result = quantize_model(model, planned(model, recipe), recipe, speech)
    assert set(result.weights) == {layer.name for layer in model.layers()}
    assert len(result.weights) == 2 * 6 + 2 * 10 + 1
    encoded = result.model.encode(result.model.features(recordings(20000)))
    assert bool(torch.isfinite(encoded.states).all())
    # AWQ judges each of its scalings by itself, and on random weights the whole may get worse by them.
    if method in ("fade", "gptq", "qep"):
        plain = Recipe(method=method_named("rtn"), format=Affine(bits=3, group_size=32))
        rounded = quantize_model(model, planned(model, plain), plain)
        original = [model.encode(model.features([u.samples()])).states for u in load_data(speech_folder).take(6)]

        def error(other: Moonshine) -> float:
            states = [other.encode(other.features([u.samples()])).states for u in load_data(speech_folder).take(6)]
            return sum(float((a - b).square().sum()) for a, b in zip(original, states, strict=True))

        assert error(result.model) < error(rounded.model)


def test_awq_mappings_leave_the_network_as_it_is() -> None:
    """Scaling inputs and dividing the outputs before them, without rounding, changes nothing."""
    from sottovoce.core.awq import divide_outputs, scale_inputs

    model = make_tiny_moonshine()
    before = model.network(input_values=torch.from_numpy(recordings(16000)[0])[None], decoder_input_ids=torch.tensor([[1, 5, 9]])).logits
    for fold in model.awq_mappings():
        source = model.module(fold.source)
        width = model.module(fold.targets[0]).weight.shape[1]
        scales = 0.5 + torch.rand(width, generator=torch.Generator().manual_seed(len(fold.source)))
        weight, bias = divide_outputs(source.weight, source.bias, scales)
        source.weight = torch.nn.Parameter(weight)
        if bias is not None:
            source.bias = torch.nn.Parameter(bias)
        for name in fold.targets:
            target = model.module(name)
            target.weight = torch.nn.Parameter(scale_inputs(target.weight, scales))
    after = model.network(input_values=torch.from_numpy(recordings(16000)[0])[None], decoder_input_ids=torch.tensor([[1, 5, 9]])).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "fitting"), [(288, "32"), (416, "32")])
def test_groups_that_do_not_divide_the_published_widths_are_named(width: int, fitting: str) -> None:
    model = make_tiny_moonshine(width=width)
    planned(model, Recipe(format=Affine(group_size=32)))
    with pytest.raises(RecipeError, match=rf"groups of 64 do not divide a row of {width}; these do: {fitting}, a whole row"):
        planned(model, Recipe(format=Affine(group_size=64)))


def test_folder_loads_and_transcribes_the_same(tmp_path: Path, speech_folder: Path) -> None:
    model = make_tiny_moonshine()
    model.network.save_pretrained(tmp_path / "model")
    model.processor.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, Moonshine)
    recipe = Recipe(method=method_named("rtn"), format=GGUF.format())
    result = api.quantize(loaded, tmp_path / "out", recipe=recipe, target=GGUF.name)
    data = load_data(speech_folder).take(4)
    ours = transcribe_data(result.model, data).transcripts
    assert transcribe_data(api.load(tmp_path / "out"), data).transcripts == ours


def test_gguf_holds_the_same_numbers_and_runs(tmp_path: Path) -> None:
    model, recipe = make_tiny_moonshine(), Recipe(method=method_named("rtn"), format=GGUF.format())
    result = quantize_model(model, make_plan(model, recipe, GGUF), recipe)
    source = open_source(result)
    write_gguf(source, tmp_path / "m.gguf")
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert len(found) == len(source.floats())
    for there, here in {
        "enc.blocks.1.attn.out": "model.encoder.layers.1.self_attn.o_proj",
        "dec.blocks.0.ffn.fc1": "model.decoder.layers.0.mlp.fc1",
        "dec.token_embd": "model.decoder.embed_tokens",
    }.items():
        tensor = found[f"{there}.weight"]
        assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), source.weights[here].dequantize().numpy())
    write_gguf(Source(make_tiny_moonshine(), {}), tmp_path / "f.gguf")
    model, heard = make_tiny_moonshine(), recordings(16000, 24000, 40000, 33000)
    decoded = model.greedy_decode(model.encode(model.features(heard)), None)
    pieces = [model.processor.tokenizer.convert_ids_to_tokens(tokens) for tokens, _ in decoded]
    # Bytes that are no text are shown in different ways: compare the letters.
    wanted = [b"".join(bytes([int(p[3:5], 16)]) if p.startswith("<0x") else p.encode() for p in row) for row in pieces]
    got = [r.text for r in open_runtime(GGUF.name, tmp_path / "f.gguf", 2).recognize(heard, None).recognitions]

    def plain(text: str) -> str:
        return "".join(c for c in text if c.isascii() and c.isalnum())

    same = [plain(g)[:4] == plain(w.decode(errors="replace"))[:4] for g, w in zip(got, wanted, strict=True)]
    assert sum(same) >= 2


def test_onnx_transcribes_recordings_of_any_length_and_a_limit_of_tokens_holds(tmp_path: Path) -> None:
    model, folder = make_tiny_moonshine(layers=1), tmp_path / "m"
    write_onnx(Source(model, {}), folder)
    assert (folder / ENCODER).is_file()
    assert (folder / DECODER).is_file()
    heard = recordings(9000, 30000, 300, 17000)
    limited = model.with_tokens_per_second(6.0)
    wanted, cut = (one.greedy_decode(one.encode(one.features(heard)), None) for one in (model, limited))
    assert cut != wanted
    for source in (model, folder):
        free, limited_one = api.open_recognizer(source), api.open_recognizer(source, tokens_per_second=6.0)
        for recognizer, expected in ((free, wanted), (limited_one, cut)):
            assert [(list(r.tokens), r.ended) for r in recognizer.recognize(heard, None).recognitions] == expected
        assert decoding_settings(free) != decoding_settings(limited_one)  # saved transcripts of the two are told apart


@pytest.mark.parametrize("seconds", [0.1, 0.02, 40.0])
def test_very_short_and_very_long_recordings(seconds: float, tmp_path: Path) -> None:
    """Shorter than the convolutions reach: padded, or refused below 0.1 s; longer than one pass: cut at silence."""
    import soundfile

    soundfile.write(tmp_path / "a.wav", recordings(int(16000 * seconds))[0], 16000)
    heard = api.transcribe(make_tiny_moonshine(), [tmp_path / "a.wav"])
    if seconds < 0.1:
        assert "0.020 s is too short; at least 0.1 s are needed" in heard.unusable[str(tmp_path / "a.wav")]
    else:
        assert heard.transcripts[0].pieces == (2 if seconds > 30 else 1)


def test_silence_is_refused_in_one_sentence(tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", np.zeros(32000), 16000)
    assert "is silent" in api.transcribe(make_tiny_moonshine(), [tmp_path / "a.wav"]).unusable[str(tmp_path / "a.wav")]
