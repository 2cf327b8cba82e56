"""A GGUF file, read back by the package `gguf` and run by transcribe.cpp."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from sottovoce.backends.registry import open_runtime
from sottovoce.backends.source import Source, open_source
from sottovoce.backends.transcribe_cpp.writer import write_gguf
from sottovoce.errors import ExportError
from sottovoce.models.whisper import Whisper
from tests.backends.conftest import rounded
from tests.conftest import make_tiny


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_tensor_arrives_bit_for_bit(tmp_path: Path, symmetric: bool) -> None:
    source = open_source(rounded(make_tiny(), symmetric=symmetric, float16_min=not symmetric))
    file = tmp_path / "tiny.gguf"
    types = write_gguf(source, file)
    assert {kind.name for kind in types.values()} == {"Q4_0" if symmetric else "Q4_1"}
    found = {t.name: t for t in gguf.GGUFReader(file).tensors}
    floats = source.floats()

    def values(name: str) -> np.ndarray:
        return gguf.dequantize(found[name].data, found[name].tensor_type)

    pairs = {
        "enc.blocks.1.ffn.fc2": "model.encoder.layers.1.fc2",
        "enc.blocks.0.attn.out": "model.encoder.layers.0.self_attn.out_proj",
        "dec.blocks.1.cross_attn.k": "model.decoder.layers.1.encoder_attn.k_proj",
        "dec.token_embd": "model.decoder.embed_tokens",
    }
    for there, here in pairs.items():
        assert np.array_equal(values(f"{there}.weight"), source.weights[here].dequantize().numpy()), here
    assert np.array_equal(values("enc.pos_emb.weight"), floats["model.encoder.embed_positions.weight"])
    assert np.array_equal(values("dec.blocks.0.norm_cross.bias"), floats["model.decoder.layers.0.encoder_attn_layer_norm.bias"])
    assert np.array_equal(values("enc.conv.0.weight").reshape(64, 16, 3), floats["model.encoder.conv1.weight"])
    assert len(found) == len(floats) + 2  # and the mel filters and their window
    assert found["enc.conv.0.weight"].tensor_type == gguf.GGMLQuantizationType.F16


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    source = open_source(rounded(make_tiny()))
    for name in ("a", "b"):
        write_gguf(source, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_transcribe_cpp_hears_what_pytorch_hears(tmp_path: Path, openai_like: Whisper) -> None:
    """Float16 weights; a random model soon goes astray on half precision. (That real words agree is tested in test_export.)"""
    write_gguf(Source(openai_like, {}), tmp_path / "f16.gguf")
    recognizer = open_runtime("gguf", tmp_path / "f16.gguf", 2)
    random = np.random.default_rng(0)
    recordings = [(0.1 * random.standard_normal(16000 + 8000 * i)).astype(np.float32) for i in range(4)]
    heard = recognizer.recognize(recordings, None)
    decoded = openai_like.decode(openai_like.encode(openai_like.features(recordings)), None, 20)
    first = [openai_like.text(row[:1]) for row in decoded]
    assert all(first)
    assert sum(h.text.startswith(word) for h, word in zip(heard.recognitions, first, strict=True)) >= 2
    assert heard.encoder_s > 0
    assert heard.decoder_s > 0
    assert recognizer.stored_bytes == (tmp_path / "f16.gguf").stat().st_size


def test_refusals(tmp_path: Path) -> None:
    source = open_source(rounded(make_tiny(), symmetric=False))
    with pytest.raises(ExportError, match="no float16 numbers"):
        write_gguf(source, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ExportError, match=r"bad\.gguf: transcribe\.cpp cannot load it"):
        open_runtime("gguf", tmp_path / "bad.gguf", 1)
    other = make_tiny()
    other.network.config.model_type = "speech_to_text"
    with pytest.raises(ExportError, match="'speech_to_text' model has no GGUF layout"):
        write_gguf(Source(other, {}), tmp_path / "x.gguf")
    torch.manual_seed(0)
