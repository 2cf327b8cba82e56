"""Qwen3-ASR in a folder of CrispASR, read back number by number and run there."""

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest

from sottovoce.backends.crispasr.qwen3_asr import qwen_name
from sottovoce.backends.crispasr.writer import write_crispasr
from sottovoce.backends.registry import open_runtime, runtime_of
from sottovoce.backends.source import Source, open_source
from sottovoce.core.affine import Affine
from sottovoce.core.formats import NAMED
from sottovoce.errors import ExportError, ModelError, RecipeError
from sottovoce.models.qwen3_asr import Qwen3ASR
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe, Rule
from tests.backends.conftest import assert_tensors_arrive
from tests.conftest import planned, quantized
from tests.models.zoo import QWEN_TEMPLATE, make_qwen

PER_TENSOR = {
    "language_model.layers.0.mlp.gate": "q2_k",
    "language_model.layers.0.mlp.up": "q3_k",
    "language_model.layers.0.mlp.down": "q4_k",
    "language_model.layers.1.mlp.gate": "q5_k",
    "language_model.layers.1.mlp.up": "iq4_xs",
    "language_model.layers.1.mlp.down": "iq4_nl",
    "lm_head": "q6_k",
}


def asked_as_published(**settings: int) -> Qwen3ASR:
    """The template of the published models begins with an empty turn of the system."""
    model = make_qwen(**settings)
    model.processor.chat_template = "<|im_start|>system\n<|im_end|>\n" + QWEN_TEMPLATE
    for parameter in model.network.parameters():
        parameter.data = parameter.data.half().float()
    return model


@pytest.fixture(scope="module")
def source() -> Source:
    rules = tuple(Rule(match=name, format=NAMED[kind]) for name, kind in PER_TENSOR.items())
    recipe = Recipe(method=method_named("rtn"), format=Affine(bits=8, group_size=32, symmetric=True, observer="minmax"), rules=rules)
    return open_source(quantized(asked_as_published(width=256, head_dim=64), recipe, target="crispasr"))


@pytest.fixture(scope="module")
def folder(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crispasr")
    types = write_crispasr(source, out)
    assert {kind.name for kind in types.values()} == {"Q8_0", *(NAMED[kind].title.split()[0] for kind in PER_TENSOR.values())}
    return out


@pytest.fixture(scope="module")
def floating(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Path]:
    """A model in float16, whose head is not the embedding."""
    source, out = Source(asked_as_published(width=64, tied=False), {}), tmp_path_factory.mktemp("floating")
    write_crispasr(source, out)
    return source, out


def recordings(*lengths: int) -> list[np.ndarray]:
    return [(0.1 * np.random.default_rng(n).standard_normal(n)).astype(np.float32) for n in lengths]


def test_every_tensor_arrives(source: Source, folder: Path) -> None:
    reader = gguf.GGUFReader(folder / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == len(source.floats()) + 3  # the head, the mel filters and their window
    assert_tensors_arrive(tensors, source, qwen_name)
    assert tensors["blk.1.ffn_up.weight"].tensor_type.name == "IQ4_XS"
    assert np.array_equal(tensors["output.weight"].data, tensors["token_embd.weight"].data)
    assert np.array_equal(tensors["audio.mel_filters"].data, source.model.processor.feature_extractor.mel_filters.astype(np.float32))
    assert {"audio.conv.1.bias", "audio.proj2.weight", "audio.blk.0.attn_out.bias", "blk.0.attn_q_norm.weight"} <= tensors.keys()
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokens == source.model.processor.tokenizer.convert_ids_to_tokens(range(len(tokens)))


def test_it_hears_what_pytorch_hears(floating: tuple[Source, Path]) -> None:
    """Whole texts in float16, also beyond the 8 s that the tower attends over; CrispASR alone cuts loops and joins spaces."""
    pytest.importorskip("crispasr")
    source, folder = floating
    assert runtime_of(folder) == "crispasr"
    recognizer = open_runtime("crispasr", folder, 1)
    heard = recordings(5000, 16000, 40000, 64000, 150000, 200000)
    for language in (None, "sv"):
        found = [one.text for one in recognizer.recognize(heard, language).recognitions]
        said = []
        for samples in heard:
            ((tokens, _),) = source.model.greedy_decode(source.model.encode(source.model.features([samples])), language)
            said.append(source.model.text(tokens))
        agree = [a.split()[:1] == b.split()[:1] and bool(a) for a, b in zip(found, said, strict=True)]
        assert sum(agree) >= 5, list(zip(found, said, strict=True))
    assert recognizer.stored_bytes == (folder / "model.gguf").stat().st_size
    assert recognizer.recognize(heard[:1], "auto").recognitions[0].ended
    with pytest.raises(ModelError, match="language 'xx' is not one this model knows"):
        recognizer.recognize(heard[:1], "xx")


def test_the_audio_tower_gives_pytorchs_numbers(floating: tuple[Source, Path]) -> None:
    """By the library's own functions: two windows of attention, the second not full."""
    crispasr = pytest.importorskip("crispasr")
    library = ctypes.CDLL(str(Path(crispasr.__file__).parent / "libcrispasr.so"))
    numbers, pointer = ctypes.POINTER(ctypes.c_float), ctypes.c_void_p
    library.crisp_audio_init_from_file.restype = pointer
    library.crisp_audio_compute_mel.restype = library.crisp_audio_encode.restype = numbers
    source, folder = floating
    tower = pointer(library.crisp_audio_init_from_file(str(folder / "model.gguf").encode(), None))
    (samples,) = recordings(200123)
    rows, columns = ctypes.c_int(), ctypes.c_int()
    sizes = ctypes.byref(rows), ctypes.byref(columns)
    mel = library.crisp_audio_compute_mel(tower, samples.ctypes.data_as(numbers), len(samples), *sizes)
    features = source.model.features([samples])
    frames = int(features["input_features_mask"].sum())
    assert (rows.value, columns.value) == (16, frames)
    assert np.abs(np.ctypeslib.as_array(mel, (16, frames)) - features["input_features"][0, :, :frames].numpy()).max() < 1e-5
    states = library.crisp_audio_encode(tower, mel, rows.value, columns.value, *sizes)
    wanted = source.model.encode(features).states[0].numpy()
    assert np.abs(np.ctypeslib.as_array(states, (rows.value, columns.value)) - wanted).max() < 1e-4 * wanted.std()
    library.crisp_audio_free(tower)


def test_every_type_is_executed(source: Source, folder: Path) -> None:
    """The begin of what a random model says; its near ties fall the other way on rounded inputs."""
    pytest.importorskip("crispasr")
    heard = recordings(16000, 24000, 32000, 40000, 64000, 80000)
    found = open_runtime("crispasr", folder, 1).recognize(heard, None).recognitions
    same = 0
    for samples, one in zip(heard, found, strict=True):
        ((tokens, _),) = source.model.greedy_decode(source.model.encode(source.model.features([samples])), None)
        same += one.text[:1] == source.model.text(tokens)[:1]
    assert same >= 4


def test_what_it_cannot_hold_or_compute_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Q4_K wants rows of a multiple of 256, not of 32"):
        planned(make_qwen(), Recipe(method=method_named("rtn"), format=NAMED["q4_k"]), "crispasr")
    with pytest.raises(ExportError, match=r"asks with a prompt of its own, and this model's template gives '<\|im_start\|>user"):
        write_crispasr(Source(make_qwen(), {}), tmp_path)
    model = asked_as_published()
    model.network.generation_config.eos_token_id = [1]
    with pytest.raises(ExportError, match=r"ends a transcript at '<\|im_end\|>', and this model ends it at \[1\]"):
        write_crispasr(Source(model, {}), tmp_path)
    model.network.config.text_config.hidden_act = "relu"
    with pytest.raises(ExportError, match="only with 'silu' as the activations of the language model, and this model has 'relu'"):
        write_crispasr(Source(model, {}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_file_of_another_model_is_none_of_ours(tmp_path: Path) -> None:
    gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama").write_header_to_file()
    assert runtime_of(tmp_path) is None
