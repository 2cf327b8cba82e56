"""Which backend a path belongs to."""

import json
import shutil
from pathlib import Path

import pytest

from sottovoce import api
from sottovoce.backends.onnx_runtime.layout import DECODER, ENCODER
from sottovoce.backends.registry import runtime_of
from sottovoce.evaluation.recognizer import TorchRecognizer


def with_onnx(folder: Path) -> Path:
    (folder / "onnx").mkdir(parents=True)
    for name in (ENCODER, DECODER, "config.json"):
        if not (folder / name).exists():
            (folder / name).touch()
    return folder


def test_a_model_with_onnx_files_beside_its_weights_runs_in_pytorch(model_folder: Path, tmp_path: Path) -> None:
    """A clone of a repository on the Hub has both."""
    clone = with_onnx(Path(shutil.copytree(model_folder, tmp_path / "clone")))
    assert runtime_of(clone) is None
    assert isinstance(api.open_recognizer(clone), TorchRecognizer)


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "model.bin"])
def test_weights_of_every_kind_make_a_folder_a_model(tmp_path: Path, weights: str) -> None:
    folder = with_onnx(tmp_path / "model")
    assert runtime_of(folder) == "onnxruntime"
    (folder / weights).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    assert runtime_of(folder) is None


def test_a_folder_called_onnx_is_no_export(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "notes.md").touch()
    assert runtime_of(tmp_path) is None
