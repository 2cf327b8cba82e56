"""A file of whisper.cpp, read back number by number and run there."""

import copy
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from sottovoce.backends.registry import open_runtime
from sottovoce.backends.source import Source, open_source
from sottovoce.backends.whisper_cpp.header import read_header
from sottovoce.backends.whisper_cpp.writer import write_ggml
from sottovoce.core.affine import Affine
from sottovoce.errors import ExportError
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe, Rule
from tests.backends.conftest import rounded
from tests.conftest import make_tiny, quantized

KINDS = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0"}


def read_back(file: Path) -> tuple[list[bytes], dict[str, np.ndarray]]:
    """Tokens and tensors, by a reader of its own."""
    data, at = file.read_bytes(), 48

    def number(fmt: str = "i") -> int:
        nonlocal at
        at += 4
        return int(struct.unpack_from(f"<{fmt}", data, at - 4)[0])

    n_mel, n_fft = number(), number()
    at += 4 * n_mel * n_fft
    tokens, tensors = [], {}
    for _ in range(number()):
        size = number("I")
        tokens.append(data[at : at + size])
        at += size
    while at < len(data):
        n_dims, length, kind = number(), number(), number()
        shape = [number() for _ in range(n_dims)][::-1]
        name = data[at : at + length].decode()
        at += length
        quantization = gguf.GGMLQuantizationType[KINDS[kind]]
        per_block, size = gguf.GGML_QUANT_SIZES[quantization]
        n_bytes = int(np.prod(shape)) // per_block * size
        raw = np.frombuffer(data[at : at + n_bytes], np.uint8)
        at += n_bytes
        if kind > 1:
            tensors[name] = gguf.dequantize(raw.reshape(shape[0], -1), quantization)
        else:
            tensors[name] = raw.view("<f4" if kind == 0 else "<f2").reshape(shape).astype(np.float32)
    return tokens, tensors


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_tensor_arrives_bit_for_bit(tmp_path: Path, openai_like: Whisper, symmetric: bool) -> None:
    source = open_source(rounded(openai_like, symmetric=symmetric, float16_min=not symmetric))
    file = tmp_path / "small.bin"
    assert {kind.name for kind in write_ggml(source, file).values()} == {"Q4_0" if symmetric else "Q4_1"}
    tokens, tensors = read_back(file)
    floats = source.floats()
    assert len(tensors) == len(floats)
    pairs = {
        "encoder.blocks.3.mlp.2": "model.encoder.layers.3.fc2",
        "encoder.blocks.0.attn.query": "model.encoder.layers.0.self_attn.q_proj",
        "decoder.blocks.1.cross_attn.out": "model.decoder.layers.1.encoder_attn.out_proj",
        "decoder.blocks.1.attn.key": "model.decoder.layers.1.self_attn.k_proj",
        "decoder.token_embedding": "model.decoder.embed_tokens",
    }
    for there, here in pairs.items():
        assert np.array_equal(tensors[f"{there}.weight"], source.weights[here].dequantize().numpy()), here
    assert np.array_equal(tensors["encoder.positional_embedding"], floats["model.encoder.embed_positions.weight"])
    assert tensors["encoder.conv1.bias"].shape == (64, 1)
    assert np.array_equal(tensors["decoder.ln.weight"], floats["model.decoder.layer_norm.weight"])
    assert len(tokens) == 50256
    assert {b" ", b" -", b" '"} <= set(tokens)
    assert tokens[openai_like.tokens("hello")[0]] == b" hello"


def test_whisper_cpp_hears_what_pytorch_hears(tmp_path: Path, openai_like: Whisper) -> None:
    write_ggml(Source(openai_like, {}), tmp_path / "f16.bin")
    recognizer = open_runtime("ggml", tmp_path / "f16.bin", 2)
    random = np.random.default_rng(0)
    recordings = [(0.1 * random.standard_normal(16000 + 8000 * i)).astype(np.float32) for i in range(4)]
    heard = recognizer.recognize(recordings, None, confidence=True).recognitions
    wanted = openai_like.decode(openai_like.encode(openai_like.features(recordings)), None, 20)
    # A random model soon goes astray on half precision; that some begin alike is no chance among 50,000 tokens.
    assert sum(h.tokens[0] == row[0] for h, row in zip(heard, wanted, strict=True)) >= 2
    assert all(len(h.log_probabilities) == len(h.tokens) for h in heard)


def test_one_type_for_all_or_a_refusal(tmp_path: Path, openai_like: Whisper) -> None:
    recipe = Recipe(method=method_named("rtn"), format=Affine(bits=4, group_size=32, symmetric=True), rules=(Rule(match="fc2", bits=8),))
    source = open_source(quantized(openai_like, recipe))
    with pytest.raises(ExportError, match=r"one type for all matrices, .* Q4_0 and .*fc2 is Q8_0"):
        write_ggml(source, tmp_path / "mixed.bin")
    assert not (tmp_path / "mixed.bin").exists()
    with pytest.raises(ExportError, match="OpenAI's vocabulary"):
        write_ggml(Source(make_tiny(), {}), tmp_path / "tiny.bin")


def test_added_tokens_and_moved_ones_are_refused_before_anything_is_written(tmp_path: Path, openai_like: Whisper) -> None:
    """One token more is one language more to whisper.cpp: it would take other tokens for the end and for timestamps."""
    added = copy.deepcopy(openai_like)
    added.network.resize_token_embeddings(51864 + 5)
    with pytest.raises(ExportError, match="this model has 51869 tokens, 3 more than the largest of them; export it to transcribe.cpp"):
        write_ggml(Source(added, {}), tmp_path / "added.bin")
    moved = copy.deepcopy(openai_like)
    moved.network.resize_token_embeddings(51865)  # what an English-only model becomes with one token more
    with pytest.raises(ExportError, match="takes token 50257 for the end of a transcript .* this model has token 50256"):
        write_ggml(Source(moved, {}), tmp_path / "moved.bin")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named_before_whisper_cpp_sees_them(tmp_path: Path, openai_like: Whisper) -> None:
    whole = tmp_path / "whole.bin"
    write_ggml(open_source(rounded(openai_like)), whole)
    assert read_header(whole)[0] == 51864
    data = whole.read_bytes()
    at = data.index(b"encoder.conv1.bias")
    for name, damaged in {
        "short": data[:-7],
        "magic": b"xxxx" + data[4:],
        "name": data[:-100_000],
        "empty": b"",
        "renamed": data[:at] + b"encoder.conv9.bias" + data[at + 18 :],
        "tokens": data[:48] + struct.pack("<2i", -5, 201) + data[56:],
    }.items():
        (tmp_path / f"{name}.bin").write_bytes(damaged)
        with pytest.raises(ExportError, match=f"{name}.bin"):
            open_runtime("ggml", tmp_path / f"{name}.bin", 1)


def test_a_tenth_of_a_second_under_a_name_with_a_tilde(tmp_path: Path, openai_like: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    """whisper.cpp answers nothing to ten frames or less; the shortest recording that is taken has 1,600 samples."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_ggml(open_source(rounded(openai_like)), tmp_path / "t.bin")
    recognizer = open_runtime("ggml", "~/t.bin", 1)
    assert recognizer.stored_bytes == (tmp_path / "t.bin").stat().st_size
    noise = 0.1 * np.random.default_rng(0).standard_normal(1600).astype(np.float32)
    short, filled = (recognizer.recognize([samples], None).recognitions[0] for samples in (noise, np.pad(noise, (0, 4000))))
    assert short.tokens == filled.tokens != ()
