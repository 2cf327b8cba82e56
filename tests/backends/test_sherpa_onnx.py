"""A folder of sherpa-onnx: its graphs beside PyTorch, its metadata and tokens, and the words of its Python package."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sottovoce.backends.openai_vocabulary import special_tokens, token_bytes
from sottovoce.backends.registry import open_runtime, runtime_of, target_named
from sottovoce.backends.sherpa_onnx.writer import piece_bytes, write_sherpa
from sottovoce.backends.source import Source, open_source
from sottovoce.cli.main import main
from sottovoce.core.affine import Affine
from sottovoce.errors import ExportError, MissingDependencyError
from sottovoce.models.moonshine import Moonshine
from sottovoce.models.whisper import Whisper
from tests.backends.conftest import rounded, small_openai
from tests.conftest import forced_logits, make_tiny, make_tiny_moonshine

onnxruntime = pytest.importorskip("onnxruntime")
CONTEXT = 32


@pytest.fixture(scope="module")
def source() -> Source:
    model = small_openai(layers=2, positions=CONTEXT)
    # Features of sherpa-onnx differ a little from transformers', and words of a random model soon part: it shall hardly hear them.
    model.network.model.encoder.conv1.weight.data *= 2**-10
    return open_source(rounded(model, symmetric=False))


@pytest.fixture(scope="module")
def folder(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sherpa")
    types = write_sherpa(source, out, "float32")
    assert {kind.name for kind in types.values()} == {"4 bits"}
    return out


@pytest.fixture(scope="module")
def moonshine_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Path]:
    pytest.importorskip("sherpa_onnx")
    model = make_tiny_moonshine(layers=1)
    out = tmp_path_factory.mktemp("moonshine")
    source = open_source(rounded(model, group_size=32))  # type: ignore[arg-type]
    write_sherpa(source, out, "float32")
    return source, out


def noise(seconds: float, seed: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(16000 * seconds))).astype(np.float32)


def decode_step(session: object, tokens: list[int], caches: list[np.ndarray], cross: list[np.ndarray], offset: int) -> list[np.ndarray]:
    inputs = [np.array([tokens]), *caches, *cross, np.array([offset])]
    names = [value.name for value in session.get_inputs()]  # type: ignore[attr-defined]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))  # type: ignore[attr-defined]


def test_the_graphs_compute_what_pytorch_computes(source: Source, folder: Path) -> None:
    """Prompt and later steps, token by token, against the decoder without a cache; suppressed tokens are out of reach."""
    encoder, decoder = (onnxruntime.InferenceSession(str(folder / f"{name}.onnx")) for name in ("encoder", "decoder"))
    model = source.model
    features = model.features([noise(2, 0)])
    cross = encoder.run(None, {"mel": features["input_features"].numpy()})
    encoded = model.encode(features)
    last = model.network.model.decoder.layers[1].encoder_attn
    assert np.allclose(cross[0][1], last.k_proj(encoded.states).numpy(), atol=2e-4)
    assert np.allclose(cross[1][1], last.v_proj(encoded.states).numpy(), atol=2e-4)
    caches = [np.zeros((2, 1, CONTEXT, 64), np.float32)] * 2
    settings, tokens, offset = model.network.generation_config, [50257, 50362], 0
    for step, following in enumerate([[50257, 50362], [1000], [2000, 17], [3]]):
        logits, *caches = decode_step(decoder, following, caches, cross, offset)
        tokens, offset = tokens if step == 0 else [*tokens, *following], offset + len(following)
        wanted = forced_logits(model, encoded, [tokens])[:, -1:].numpy()
        out = sorted({*settings.suppress_tokens, *(settings.begin_suppress_tokens if step == 0 else ())})
        assert bool(np.isneginf(logits[0, 0, out]).all())
        inside = np.setdiff1d(np.arange(wanted.shape[2]), out)
        assert np.abs(logits - wanted)[0, 0, inside].max() < 1e-3 * wanted.std()


def test_shorter_windows_are_taken(source: Source, folder: Path) -> None:
    """As openai/whisper computes them: the first positions only."""
    encoder = onnxruntime.InferenceSession(str(folder / "encoder.onnx"))
    mel = np.random.default_rng(0).standard_normal((1, 80, 411)).astype(np.float32)
    keys, values = encoder.run(None, {"mel": mel})
    assert keys.shape == values.shape == (2, 1, 206, 64)
    part = source.model.network.model.encoder
    x = torch.nn.functional.gelu(part.conv2(torch.nn.functional.gelu(part.conv1(torch.from_numpy(mel))))).transpose(1, 2)
    x = x + part.embed_positions.weight[:206]
    for layer in part.layers:
        x = layer(x, None)
    wanted = source.model.network.model.decoder.layers[0].encoder_attn.k_proj(part.layer_norm(x))
    assert np.allclose(keys[0], wanted.numpy(), atol=2e-4)


def test_metadata_and_tokens(source: Source, folder: Path) -> None:
    session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"))
    found = session.get_modelmeta().custom_metadata_map
    # The values that sherpa-onnx's own script writes for tiny.en.
    wanted = {"sot": "50257", "eot": "50256", "translate": "50357", "transcribe": "50358", "no_timestamps": "50362", "no_speech": "50361",
              "blank_id": "220", "sot_sequence": "50257", "is_multilingual": "0", "n_mels": "80", "n_text_ctx": "32", "n_vocab": "51864",
              "sot_lm": "50359", "sot_prev": "50360", "n_text_layer": "2", "n_text_state": "64"}  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert found["all_language_codes"].split(",")[:2] == ["en", "zh"]
    lines = [line.split() for line in (folder / "tokens.txt").read_text().splitlines()]
    assert [int(number) for _, number in lines] == list(range(50256))
    assert [base64.b64decode(token) for token, _ in lines] == token_bytes(source)
    assert special_tokens(source).languages["en"] == 50258


def test_sherpa_onnx_hears_what_pytorch_hears(source: Source, folder: Path) -> None:
    pytest.importorskip("sherpa_onnx")
    recognizer = open_runtime("sherpa-onnx", folder, 1)
    assert runtime_of(folder) == "sherpa-onnx"
    recordings = [noise(2 + i, i) for i in range(3)]
    heard = recognizer.recognize(recordings, None).recognitions
    decoded, _ = source.model.decode_by_language(source.model.encode(source.model.features(recordings)), None)
    for one, (tokens, ended), limit in zip(heard, decoded, (12, 16, 16), strict=True):  # of tokens: six a second, half the context
        assert one.text == source.model.text(tokens[:limit])
        assert not one.ended
        assert not ended
    assert recognizer.stored_bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert recognizer.max_duration_s == 29.5


def test_moonshine_too(moonshine_folder: tuple[Source, Path]) -> None:
    source, folder = moonshine_folder
    assert sorted(file.name for file in folder.iterdir()) == ["decoder_model_merged.onnx", "encoder_model.onnx", "tokens.txt"]
    assert piece_bytes(source)[3 + 10] == b"\n"
    assert b" th" in piece_bytes(source)
    assert piece_bytes(source)[:3] == [b"", b"", b""]
    recognizer = open_runtime("sherpa", folder, 1)
    recordings = [noise(1.5, i) for i in range(3)]
    heard = recognizer.recognize(recordings, None).recognitions
    decoded = [source.model.decode_by_language(source.model.encode(source.model.features([samples])), None)[0][0] for samples in recordings]
    for one, (tokens, _) in zip(heard, decoded, strict=True):
        spoken = b"".join(piece_bytes(source)[token] for token in tokens).decode("utf-8", "ignore").strip()
        assert spoken.startswith(one.text)
        assert len(one.text) >= 4
    assert isinstance(source.model, Moonshine)


def test_what_it_cannot_hold_is_refused(tmp_path: Path, source: Source) -> None:
    with pytest.raises(ExportError, match="OpenAI's vocabulary"):
        write_sherpa(Source(make_tiny(), {}), tmp_path)
    assert "sherpa-onnx has no operator" in (target_named("sherpa-onnx").misfit(_minimum(), "encoder", 64) or "")
    settings = source.model.network.generation_config
    kept = settings.no_timestamps_token_id
    try:
        settings.no_timestamps_token_id = kept + 1
        with pytest.raises(ExportError, match="not in the order of OpenAI's vocabulary"):
            special_tokens(source)
    finally:
        settings.no_timestamps_token_id = kept


def _minimum() -> object:
    from sottovoce.core.formats import NAMED

    return NAMED["mlx4"]


def test_damaged_folders_are_named_before_sherpa_onnx_sees_them(tmp_path: Path, folder: Path) -> None:
    """It ends the whole process on such files."""
    pytest.importorskip("sherpa_onnx")
    import shutil

    import onnx

    def damaged(name: str) -> Path:
        shutil.copytree(folder, tmp_path / name)
        return tmp_path / name

    (damaged("cut") / "decoder.onnx").write_bytes((folder / "decoder.onnx").read_bytes()[:5000])
    (damaged("tokens") / "tokens.txt").write_text("IQ== 0\nIg== 5\n")
    (damaged("missing") / "tokens.txt").unlink()
    model = onnx.load(str(folder / "encoder.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(damaged("metadata") / "encoder.onnx"))
    for name, match in {
        "cut": "decoder.onnx: is no ONNX file or is damaged",
        "tokens": "its numbers have gaps",
        "missing": "has no tokens.txt",
        "metadata": "metadata have no 'n_mels'",
    }.items():
        with pytest.raises(ExportError, match=match):
            open_runtime("sherpa-onnx", tmp_path / name, 1)


def test_sums_of_bytes_that_may_saturate_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sherpa_onnx")
    asked = list[Path]()
    monkeypatch.setattr("sottovoce.backends.sherpa_onnx.runtime.name_saturation", lambda _model, encoder: asked.append(encoder))
    open_runtime("sherpa-onnx", folder, 1)
    assert asked == [folder / "encoder.onnx"]


def test_a_missing_package_is_named_with_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sherpa_onnx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sottovoce\[sherpa\]'"):
        open_runtime("sherpa-onnx", folder, 1)


def test_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Source) -> None:
    pytest.importorskip("sherpa_onnx")
    import soundfile

    model = source.model
    assert isinstance(model, Whisper)
    model.network.save_pretrained(tmp_path / "model")
    model.processor.save_pretrained(tmp_path / "model")
    out, folder = str(tmp_path / "small-4bit"), tmp_path / "small-sherpa"
    run = CliRunner().invoke(main, ["quantize", str(tmp_path / "model"), out, "--target", "sherpa-onnx", "--method", "rtn"])
    assert run.exit_code == 0, run.stderr
    run = CliRunner().invoke(main, ["export", out, "sherpa-onnx", str(folder), "--no-verify", "--json"])
    assert run.exit_code == 0, run.stderr
    assert json.loads(run.stdout)["backend"] == "sherpa-onnx"
    (tmp_path / "speech").mkdir()
    soundfile.write(tmp_path / "speech" / "noise.wav", noise(2, 0), 16000)
    run = CliRunner().invoke(main, ["transcribe", str(folder), str(tmp_path / "speech" / "noise.wav"), "--json"])
    assert run.exit_code == 0, run.stderr
    monkeypatch.setenv("SOTTOVOCE_LEDGER", str(tmp_path / "looks.jsonl"))
    certified = ["certify", str(folder), "--against", str(tmp_path / "model"), "--folder", out, "--audio", str(tmp_path / "speech")]
    run = CliRunner().invoke(main, [*certified, "--json"])
    assert run.exit_code == 0, run.stderr
    assert json.loads(run.stdout)["runtime"] == "sherpa-onnx"
    assert target_named("sherpa").format() == Affine()
