"""A folder of CrispASR, read back number by number and run there."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from sottovoce.backends.crispasr.moonshine import moonshine_name, token_record
from sottovoce.backends.crispasr.writer import write_crispasr
from sottovoce.backends.registry import open_runtime, runtime_of
from sottovoce.backends.source import Source, open_source
from sottovoce.core.formats import NAMED
from sottovoce.errors import ExportError, MissingDependencyError, RecipeError
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe, Rule
from tests.backends.conftest import assert_tensors_arrive
from tests.conftest import make_tiny, make_tiny_moonshine, planned, quantized

PER_TENSOR = (
    Rule(match="encoder.*q_proj", format=NAMED["q8_0"]),
    Rule(match="fc1", format=NAMED["q5_1"]),
    Rule(part="head", format=NAMED["q4_1"]),
)


@pytest.fixture(scope="module")
def source() -> Source:
    recipe = Recipe(method=method_named("rtn"), format=NAMED["iq4_nl"], rules=PER_TENSOR)
    return open_source(quantized(make_tiny_moonshine(), recipe, target="crispasr"))


@pytest.fixture(scope="module")
def folder(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crispasr")
    types = write_crispasr(source, out)
    assert {kind.name for kind in types.values()} == {"IQ4_NL", "Q8_0", "Q5_1", "Q4_1"}
    return out


def test_every_tensor_arrives(source: Source, folder: Path) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}
    assert len(tensors) == len(source.floats())
    assert_tensors_arrive(tensors, source, moonshine_name)
    assert tensors["decoder.embed_tokens.weight"].tensor_type.name == "Q4_1"
    assert {"encoder.layers.1.attn.q.weight", "decoder.layers.0.cross_attn.o.weight", "decoder.layers.1.ffn_norm.weight"} <= tensors.keys()


def test_tokens_have_their_lengths() -> None:
    assert token_record("") == b"\0"
    assert token_record("\u2581th") == b"\5\xe2\x96\x81th"
    assert token_record("<0x0A>") == b"\1\n"
    assert token_record("x" * 300) == bytes([300 % 128 + 128, 2]) + b"x" * 300  # as its reader computes: 2 * 128 + first - 128
    with pytest.raises(ExportError, match="a token takes 20000 bytes"):
        token_record("x" * 20000)


def test_what_it_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not a 'whisper' model; its Whisper backend reads files of whisper.cpp"):
        write_crispasr(Source(make_tiny(), {}), tmp_path)
    with pytest.raises(RecipeError, match="Q4_K wants rows of a multiple of 256, not of 64"):
        planned(make_tiny_moonshine(), Recipe(method=method_named("rtn"), format=NAMED["q4_k"]), "crispasr")
    model = make_tiny_moonshine()
    model.network.config.decoder_num_key_value_heads = 2
    with pytest.raises(ExportError, match="one number of heads everywhere"):
        write_crispasr(Source(model, {}), tmp_path)


def test_a_missing_package_is_named_with_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "crispasr", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sottovoce\[crispasr\]'"):
        open_runtime("crispasr", folder, 1)


def test_damaged_folders_are_named_before_native_code_sees_them(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("crispasr")
    for name, data in {"cut": (folder / "model.gguf").read_bytes()[:-5000], "empty": b""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.gguf").write_bytes(data)
        (tmp_path / name / "tokenizer.bin").write_bytes((folder / "tokenizer.bin").read_bytes())
        with pytest.raises(ExportError, match=r"model.gguf: is (cut short|no GGUF file or is damaged)"):
            open_runtime("crispasr", tmp_path / name, 1)
    (tmp_path / "cut" / "tokenizer.bin").unlink()
    (tmp_path / "cut" / "model.gguf").write_bytes((folder / "model.gguf").read_bytes())
    with pytest.raises(ExportError, match="has no tokenizer.bin"):
        open_runtime("crispasr", tmp_path / "cut", 1)


def test_it_hears_what_pytorch_hears(source: Source, folder: Path) -> None:
    """The begin of what a random model says; its near ties fall the other way on rounded inputs."""
    pytest.importorskip("crispasr")
    assert runtime_of(folder) == "crispasr"
    recognizer = open_runtime("crispasr", folder, 1)
    recordings = [(0.1 * np.random.default_rng(i).standard_normal(16000 + 4000 * i)).astype(np.float32) for i in range(6)]
    heard = recognizer.recognize(recordings, None).recognitions
    same, content = 0, source.tokenizer()["model"]["vocab"]
    records = {number: token_record(piece)[1:] for piece, number in content.items()}
    for samples, one in zip(recordings, heard, strict=True):
        ((tokens, _),), _ = source.model.decode_by_language(source.model.encode(source.model.features([samples])), None)
        said = b"".join(records[token] for token in tokens).replace(b"\xe2\x96\x81", b" ").decode("utf-8", "replace").strip()
        same += len(one.text) > 3 and said.startswith(one.text[:3])
    assert same >= 3
    assert recognizer.stored_bytes == sum(file.stat().st_size for file in folder.iterdir())
