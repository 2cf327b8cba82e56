"""What a recognizer in PyTorch says of its files and settings, and how it encodes."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sottovoce import api
from sottovoce.core.affine import Affine
from sottovoce.evaluation.context import EncoderWindow
from sottovoce.evaluation.fallback import Fallback
from sottovoce.evaluation.recognizer import NO_WINDOW, TorchRecognizer, decoding_settings, recognizer_digest, window_of
from sottovoce.models.batching import Encoded
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from tests.conftest import make_tiny


def test_the_size_is_that_of_the_weights_that_are_loaded(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    size = (folder / "model.safetensors").stat().st_size
    shutil.copy(folder / "model.safetensors", folder / "model.fp32-00001-of-00001.safetensors")
    assert TorchRecognizer(api.load(folder)).stored_bytes == size
    model = api.load(folder)
    model.network.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(shards) > 1
    assert TorchRecognizer(api.load(folder)).stored_bytes == sum(shard.stat().st_size for shard in shards)


def test_the_size_of_a_model_without_a_folder_is_that_of_float16() -> None:
    model = make_tiny()
    assert TorchRecognizer(model).stored_bytes == 2 * sum(parameter.numel() for parameter in model.network.parameters())


def test_the_size_of_a_quantized_folder_is_that_of_its_weights(model_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(method=method_named("rtn"), format=Affine(bits=4, group_size=32))
    api.quantize(model_folder, tmp_path / "four", recipe=recipe)
    size = (tmp_path / "four" / "model.safetensors").stat().st_size
    shutil.copy(tmp_path / "four" / "model.safetensors", tmp_path / "four" / "other.safetensors")
    for runtime in (None, "compressed-tensors"):
        recognizer = api.open_recognizer(tmp_path / "four", runtime)
        assert recognizer.stored_bytes == size


class Heard:
    """A model whose states are a recording's first sample, in as many positions as its context (four of a whole window)."""

    source, max_duration_s, window_positions, folder = "heard", 1.0, 50, None
    placement = SimpleNamespace(device=torch.device("cpu"))

    def __init__(self) -> None:
        self.sizes = list[tuple[int, int]]()

    def features(self, recordings: Sequence[np.ndarray]) -> tuple[int, Sequence[np.ndarray]]:
        return 4, recordings

    def short_features(self, recordings: Sequence[np.ndarray], context: int) -> tuple[int, Sequence[np.ndarray]]:
        return context, recordings

    def encode(self, features: tuple[int, Sequence[np.ndarray]]) -> Encoded:
        positions, recordings = features
        self.sizes.append((positions, len(recordings)))
        return Encoded(torch.tensor([[[float(samples[0])]] * positions for samples in recordings]))

    def detect_languages(self, encoded: Encoded) -> list[str]:
        return ["de" if float(encoded.states[0, 0, 0]) == 7 else "fr"]

    def decode_long(self, recording: np.ndarray, language: str | None) -> tuple[list[int], bool] | None:
        return None if language == "fr" else ([len(recording)], language == "de")

    def text(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))


def test_recordings_of_one_context_are_encoded_together_and_come_back_in_order() -> None:
    model = Heard()
    recognizer = TorchRecognizer(model, encoder_batch=2)  # type: ignore[arg-type]
    recordings = [np.full(9, i, np.float32) for i in range(7)]
    encoded = recognizer._encode(recordings, (3, None, 3, 2, None, 3, None))
    assert model.sizes == [(3, 2), (3, 1), (4, 2), (4, 1), (2, 1)]
    assert encoded.states[:, 0, 0].tolist() == list(range(7))
    assert encoded.mask is not None
    assert encoded.mask.sum(1).tolist() == [3, 4, 3, 2, 4, 3, 4]
    model.sizes.clear()
    assert recognizer._encode(recordings[:3], (None,) * 3).states[:, 0, 0].tolist() == [0, 1, 2]
    assert model.sizes == [(4, 2), (4, 1)]
    assert recognizer.window == EncoderWindow(positions=50)


def test_a_long_recording_has_the_language_of_its_first_pass() -> None:
    model = Heard()
    recognizer = TorchRecognizer(model)  # type: ignore[arg-type]
    recording = np.full(40000, 7, np.float32)
    found = recognizer.recognize_long(recording, "auto")
    assert found is not None
    assert (found.language, found.tokens, found.text, found.ended, found.decoding) == ("de", (40000,), "40000", True, "long-form")
    assert recognizer.recognize_long(np.ones(40000, np.float32), "auto") is None
    assert len(model.sizes) == 2
    plain = recognizer.recognize_long(recording, None)
    assert plain is not None
    assert (plain.language, plain.ended, len(model.sizes)) == (None, False, 2)


def test_a_digest_is_of_the_content_of_a_file_or_of_all_files_of_a_folder(tmp_path: Path) -> None:
    def digest(path: Path | str) -> str:
        return recognizer_digest(SimpleNamespace(source=str(path), stored_bytes=1))  # type: ignore[arg-type]

    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(b"one")
    (folder / "sub" / "b").write_bytes(b"two")
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in (("a", b"one"), ("sub/b", b"two"))}
    assert digest(folder / "a") == sums["a"]
    assert digest(folder) == hashlib.sha256(f"{sums['a']}  a\n{sums['sub/b']}  sub/b\n".encode()).hexdigest()
    assert digest("elsewhere") == hashlib.sha256(b"elsewhere 1").hexdigest()
    assert digest("") == hashlib.sha256(b" 1").hexdigest()


def test_what_decides_about_the_words_is_told_apart() -> None:
    def settings(change: str = "") -> dict[str, Any]:
        model = make_tiny(layers=1)
        if change == "generation":
            model.network.generation_config.max_length += 1
        if change == "network":
            model.network.config.dropout = 0.5
        return decoding_settings(TorchRecognizer(model, fallback=Fallback(seed=3) if change == "fallback" else None))

    plain = settings()
    assert plain == settings()
    assert (plain["fallback"], plain["device"]) == (None, None)
    assert {change: settings(change)["decoding"] != plain["decoding"] for change in ("generation", "network", "fallback")} == {
        "generation": True, "network": True, "fallback": False,
    }  # fmt: skip
    assert settings("fallback")["fallback"]["seed"] == 3
    other = SimpleNamespace(source="x", model=SimpleNamespace(tokens_per_second=6.5))
    assert decoding_settings(other) == {"tokens_per_second": 6.5}  # type: ignore[arg-type]
    assert decoding_settings(SimpleNamespace(source="x")) == {}  # type: ignore[arg-type]
    assert window_of(other) is NO_WINDOW  # type: ignore[arg-type]
