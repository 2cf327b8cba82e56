"""Moonshine base out of its wheel: tensors of a graph made here, and the real model against ONNX Runtime on the wheel's own files."""

import importlib.metadata
import json
import shutil
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.convert_slow_tokenizer import generate_merges

from sottovoce import api
from sottovoce.data.audio import read_audio
from sottovoce.errors import MissingDependencyError, ModelError, OutputError
from sottovoce.models import bundled, moonshine_wheel
from sottovoce.models.load import load_model
from sottovoce.models.moonshine import Moonshine
from sottovoce.models.moonshine_wheel import make_tokenizer, read_tensors, recovered_folder, source_of, split_table, tensor_digest
from sottovoce.models.ort_format import Node, OrtModel, read_ort
from tests.conftest import make_tiny_moonshine


@pytest.fixture
def wheel_models() -> Path:
    spec = find_spec("moonshine_cpp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel moonshine-cpp is not installed")
    return Path(spec.submodule_search_locations[0]) / "models" / "base-en"


def graph_of(model: Moonshine, half: str) -> OrtModel:
    """What the wheel's files hold, of a model that is known: matrices on a lattice, `[in, out]`, under numbers."""
    prefix = "/" if half == "encoder" else "/model/decoder/"
    constants, inputs = dict[str, np.ndarray](), dict[str, list[str]]()
    for number, (name, tensor) in enumerate(model.network.state_dict().items()):
        if not name.startswith(f"model.{half}."):
            continue
        node, _, transposed = source_of(name)
        values, constant = tensor.numpy(), f"onnx::{number}"
        if values.ndim > 1:
            scale = np.array([(values.max() - values.min()) / 255], np.float32)
            codes = np.clip(np.rint(values / scale), -128, 127).astype(np.int8)
            constants |= {f"{constant}_quantized": codes.T if transposed else codes, f"{constant}_scale": scale}
            constants[f"{constant}_zero_point"] = 3 * scale
            constant += "_add_tensor"
        else:
            constants[constant] = values[:, None] if "groupnorm" in name else values
        inputs.setdefault(prefix + node, []).append(constant)
    # As exported: what a node computes on may come before or after its constant.
    nodes = {path: Node(path, path.rpartition("/")[2], (f"{path}_input", *found)) for path, found in inputs.items()}
    nodes |= {path: Node(path, "Add", (*node.inputs[1:], node.inputs[0])) for path, node in nodes.items() if path.endswith("fc1/Add")}
    return OrtModel(constants, nodes)


def test_every_tensor_is_found_by_the_node_that_uses_it() -> None:
    model = make_tiny_moonshine()
    halves = graph_of(model, "encoder"), graph_of(model, "decoder")
    tensors = read_tensors(*halves, model.network.config)
    state = {name: tensor.numpy() for name, tensor in model.network.state_dict().items() if name != "proj_out.weight"}
    assert set(tensors) == set(state)
    for name, values in state.items():
        if values.ndim == 1:
            assert np.array_equal(tensors[name], values), name
        else:  # rounded to the lattice, then moved by three steps
            step = (values.max() - values.min()) / 255
            at = np.rint(values / step).clip(-128, 127) + 3
            np.testing.assert_allclose(tensors[name], at * step, atol=1e-5, err_msg=name)


def test_a_graph_that_lacks_something_is_refused_by_the_tensors_name() -> None:
    model = make_tiny_moonshine()
    encoder, decoder = graph_of(model, "encoder"), graph_of(model, "decoder")
    cut = OrtModel(decoder.constants, {name: node for name, node in decoder.nodes.items() if "layers.1/mlp/down_proj/MatMul" not in name})
    with pytest.raises(ModelError, match=r"model\.decoder\.layers\.1\.mlp\.fc2\.weight: the graph has no constant"):
        read_tensors(encoder, cut, model.network.config)
    wider = make_tiny_moonshine(width=72).network.config
    with pytest.raises(ModelError, match=r"the graph holds \[64, 1, 127\] for it, wanted \[72, 1, 127\]"):
        read_tensors(encoder, decoder, wider)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.encoder.conv2.bias", ("conv2/Conv", 1, False)),
        ("model.encoder.groupnorm.bias", ("groupnorm/Add", 0, False)),
        ("model.encoder.layers.3.mlp.fc1.bias", ("layers.3/mlp/fc1/Add", 0, False)),
        ("model.decoder.layers.7.encoder_attn.o_proj.weight", ("layers.7/encoder_attn/dense/MatMul", 0, True)),
        ("model.decoder.layers.0.mlp.fc1.weight", ("layers.0/mlp/up_proj/MatMul", 0, True)),
        ("model.decoder.layers.0.final_layernorm.weight", ("layers.0/final_layernorm/Mul", 0, False)),
        ("model.decoder.norm.weight", ("norm/Mul", 0, False)),
        ("model.decoder.embed_tokens.weight", ("embed_tokens/Gather", 0, False)),
    ],
)
def test_where_tensors_come_from(name: str, where: tuple[str, int, bool]) -> None:
    assert source_of(name) == where


def test_the_digest_tells_names_shapes_and_values_apart() -> None:
    values = np.arange(6, dtype=np.float32)
    digests = {
        tensor_digest({"a": values, "b": values[:2]}),
        tensor_digest({"a": values, "c": values[:2]}),
        tensor_digest({"a": values.reshape(2, 3), "b": values[:2]}),
        tensor_digest({"a": values + np.float32(1e-6), "b": values[:2]}),
    }
    assert len(digests) == 4
    assert tensor_digest({"b": values[:2], "a": values}) in digests


def table_of(pieces: list[bytes]) -> bytes:
    return b"".join(bytes([len(p)] if len(p) < 128 else [128 + len(p) % 128, len(p) // 128]) + p for p in pieces)


def test_the_piece_table() -> None:
    pieces = [b"", b"ab", b"x" * 127, b"y" * 128, b"z" * 300, b"end"]
    assert split_table(table_of(pieces)) == pieces


def test_the_tokenizer_merges_as_transformers_would() -> None:
    words = ["a", "b", "c", "\u2581", "ab", "bc", "\u2581a", "abc", "\u2581abc"]
    table = table_of([b"<unk>", b"<s>", b"</s>", *(bytes([i]) for i in range(256)), *(word.encode() for word in words)])
    tokenizer = make_tokenizer(table)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = {word: 259 + i for i, word in enumerate(words)}
    wanted = generate_merges(vocabulary, {word: -i for word, i in vocabulary.items()})
    assert [tuple(pair) for pair in state["merges"]] == wanted
    assert ("ab", "c") in wanted
    ids = tokenizer("abc ab\u00e9", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["\u2581abc", "\u2581", "ab", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "abc ab\u00e9"
    assert tokenizer.convert_tokens_to_ids("<<ST_0>>") == 259 + len(words)


def test_the_real_model_computes_what_onnx_runtime_computes(moonshine_base: Moonshine, moonshine_speech: Path, wheel_models: Path) -> None:
    """Encoder states and logits to float32 rounding, and every greedy token, on the wheel's own recording and files."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    sessions = [onnxruntime.InferenceSession(wheel_models / name, options) for name in (moonshine_wheel.ENCODER, moonshine_wheel.DECODER)]
    samples = read_audio(moonshine_speech)
    (states,) = sessions[0].run(None, {"input_values": samples[None]})
    encoded = moonshine_base.encode(moonshine_base.features([samples]))
    torch.testing.assert_close(encoded.states, torch.from_numpy(states), rtol=0, atol=1e-3)

    names = [output.name for output in sessions[1].get_outputs()]
    past = {name.replace("present", "past_key_values"): np.zeros((1, 8, int("encoder" in name), 52), np.float32) for name in names[1:]}
    tokens, logits = [1], []
    while tokens[-1] != 2:
        first = len(tokens) == 1
        given = {"input_ids": np.array([tokens[-1:]]), "encoder_hidden_states": states, "use_cache_branch": np.array([not first])}
        out = dict(zip(names, sessions[1].run(names, given | past), strict=True))
        logits.append(out["logits"][0, -1])
        tokens.append(int(logits[-1].argmax()))
        kept = {name: value for name, value in out.items() if name != "logits" and (first or "encoder" not in name)}
        past |= {name.replace("present", "past_key_values"): value for name, value in kept.items()}
    transcript = tokens[1:-1]
    assert len(transcript) > 10
    assert moonshine_base.greedy_decode(encoded, None) == [(transcript, True)]
    forced, _ = moonshine_base.teacher_forcing([transcript], None)
    ours = moonshine_base.module(moonshine_base.head)(moonshine_base.decoder_states(encoded, forced))[0]
    torch.testing.assert_close(ours, torch.from_numpy(np.stack(logits)), rtol=0, atol=2e-3)


def test_the_real_model_hears_words(moonshine_base: Moonshine, moonshine_speech: Path) -> None:
    (transcript,) = api.transcribe(moonshine_base, [moonshine_speech]).transcripts
    assert transcript.text == "Ever tried ever failed, no matter try again fail again fail better."
    assert moonshine_base.tied
    assert sum(parameter.numel() for parameter in moonshine_base.network.parameters()) == 61_513_920
    for text in ("Hello, world.", "na\u00efve caf\u00e9", "\u4f60\u597d \U0001f44b"):
        assert moonshine_base.text(moonshine_base.tokens(text)) == text


def test_the_weights_lie_on_a_lattice_of_256_levels(moonshine_base: Moonshine) -> None:
    for layer in moonshine_base.layers():
        values = moonshine_base.module(layer.name).weight
        step = (values.max() - values.min()) / 255
        at = ((values - values.min()) / step).double()
        assert float((at - at.round()).abs().max()) < 0.01, layer.name


@pytest.mark.usefixtures("moonshine_base")
def test_the_licence_is_kept_and_the_cache_is_mended() -> None:
    folder = recovered_folder(lambda: pytest.fail("the wheel was asked for, though all is in the cache"))
    assert "MIT License" in (folder / "LICENSE").read_text()
    assert {file.name for file in folder.iterdir()} == {*moonshine_wheel.WRITTEN, moonshine_wheel.CHECKSUMS}
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in folder.iterdir())
    raw = bytearray((folder / "config.json").read_bytes())
    raw[50] ^= 1
    (folder / "config.json").write_bytes(raw)
    load_model("bundled:moonshine-base")
    assert moonshine_wheel.is_whole(folder)
    assert (folder / "config.json").read_bytes() != raw


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """A cache of its own, and a recovery that only writes a few letters; the sources it was asked for."""
    made = list[Path]()

    def recover(models: Path, out: Path) -> None:
        made.append(models)
        time.sleep(0.2)  # long enough for another to come
        out.mkdir()
        for name in moonshine_wheel.WRITTEN:
            (out / name).write_text(name)
        lines = [f"{moonshine_wheel.sha256(out / name)}  {name}\n" for name in moonshine_wheel.WRITTEN]
        (out / moonshine_wheel.CHECKSUMS).write_text("".join(lines))

    monkeypatch.setattr(moonshine_wheel, "recover", recover)
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path / "cache"))
    return made


def test_who_comes_at_the_same_time_waits(little: list[Path], tmp_path: Path) -> None:
    found = list[Path]()
    asked = [threading.Thread(target=lambda: found.append(recovered_folder(lambda: tmp_path))) for _ in range(4)]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    assert little == [tmp_path]
    assert found == [tmp_path / "cache" / moonshine_wheel.FOLDER] * 4


def test_a_folder_of_the_cache_that_is_a_link_stays_one(little: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache" / moonshine_wheel.FOLDER).symlink_to("../elsewhere")
    assert recovered_folder(lambda: tmp_path) == tmp_path / "elsewhere"
    assert (tmp_path / "cache" / moonshine_wheel.FOLDER).is_symlink()
    assert little == [tmp_path]


def test_a_recovery_that_fails_leaves_nothing(little: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_models: Path, out: Path) -> None:
        out.mkdir()
        raise ModelError("no")

    monkeypatch.setattr(moonshine_wheel, "recover", fail)
    with pytest.raises(ModelError, match="no"):
        recovered_folder(lambda: tmp_path)
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [f".{moonshine_wheel.FOLDER}.lock"]
    assert not little


@pytest.mark.usefixtures("little")
def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="name another cache folder in SOTTOVOCE_CACHE"):
        recovered_folder(lambda: tmp_path)


@pytest.mark.parametrize(("given", "wanted"), [({}, "~/.cache/sottovoce"), ({"XDG_CACHE_HOME": "/x"}, "/x/sottovoce")])
def test_where_the_cache_lies(given: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SOTTOVOCE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert moonshine_wheel.cache_folder() == Path(wanted).expanduser()
    monkeypatch.setenv("SOTTOVOCE_CACHE", "~/mine")
    assert moonshine_wheel.cache_folder() == Path("~/mine").expanduser()


def test_a_missing_or_other_wheel_names_the_install_command(little: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("moonshine_cpp") is not None:
        monkeypatch.setattr(importlib.metadata, "version", lambda _name: "0.1.5")
        with pytest.raises(
            MissingDependencyError, match=r"needs moonshine-cpp==0\.1\.4, found 0\.1\.5; .*pip install moonshine-cpp==0\.1\.4"
        ):
            load_model("bundled:moonshine-base")
    monkeypatch.setattr(bundled, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install moonshine-cpp==0\.1\.4 \(55 MB; Linux on x86-64\)"):
        load_model("bundled:moonshine-base")
    with pytest.raises(ModelError, match=r"bundled:tiny\.en, bundled:base, bundled:moonshine-base"):
        load_model("bundled:moonshine-micro")
    assert not little


def test_changed_and_missing_files_of_the_wheel_are_refused(wheel_models: Path, tmp_path: Path) -> None:
    copy = tmp_path / "models" / "base-en"
    shutil.copytree(wheel_models, copy)
    raw = bytearray((copy / moonshine_wheel.PIECES).read_bytes())
    raw[1000] ^= 1
    (copy / moonshine_wheel.PIECES).write_bytes(raw)
    with pytest.raises(ModelError, match=r"tokenizer\.bin has sha256 .* reinstall the wheel"):
        moonshine_wheel.recover(copy, tmp_path / "out")
    (copy / moonshine_wheel.DECODER).unlink()
    with pytest.raises(ModelError, match=r"decoder_model_merged\.ort: missing; reinstall the wheel"):
        moonshine_wheel.recover(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_files_are_not_read_as_ort(tmp_path: Path) -> None:
    (tmp_path / "x.ort").write_bytes(b"0123456789")
    with pytest.raises(ModelError, match=r"x\.ort: not a model in ONNX Runtime's format"):
        read_ort(tmp_path / "x.ort")
