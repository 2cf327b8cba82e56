"""Words that messages share."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sottovoce.backends.registry import open_runtime
from sottovoce.errors import ExportError, first_line
from sottovoce.system.devices import _lacks


def test_the_first_line_of_an_error_that_may_have_no_message() -> None:
    assert first_line(ValueError("\n\n  wrong \nmore")) == "wrong"
    assert first_line(ValueError()) == first_line(ValueError(" \n ")) == "ValueError"


def fail(*_: object, **__: object) -> None:
    raise RuntimeError


def test_an_error_without_a_message_is_named_by_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.functional, "conv1d", fail)
    assert _lacks(torch.device("cpu"), torch.float32) == "RuntimeError"
    pytest.importorskip("onnxruntime")
    (tmp_path / "onnx").mkdir()
    for name in ("onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx", "config.json"):
        (tmp_path / name).touch()
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot load it \(RuntimeError\); export it again"):
        open_runtime("onnxruntime", tmp_path, 1)
