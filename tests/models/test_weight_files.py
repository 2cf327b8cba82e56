"""Which files of a folder are loaded, and which lie beside them."""

import json
from pathlib import Path

import pytest

from sottovoce.models.weight_files import weight_files

INDEX = {"weight_map": {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ({"model.safetensors": "x", "model.fp32-00001-of-00001.safetensors": "x", "pytorch_model.bin": "x"}, ["model.safetensors"]),
        ({"model.safetensors.index.json": INDEX, "pytorch_model.bin": "x"}, SHARDS),
        ({"pytorch_model.bin": "x", "flax_model.msgpack": "x"}, ["pytorch_model.bin"]),
        ({"pytorch_model.bin.index.json": INDEX}, SHARDS),
        ({"model.safetensors.index.json": "damaged"}, ["model.safetensors.index.json"]),
        ({"config.json": {"transformers_weights": "x.safetensors"}, "model.safetensors": "x", "x.safetensors": "x"}, ["x.safetensors"]),
        ({"model.bin": "x", "model.safetensors": "x"}, ["model.bin"]),
        ({"model.bin": "x", "model.safetensors": "x", "sottovoce.json": {}}, ["model.safetensors"]),
        ({"config.json": [], "tf_model.h5": "x", "weights.safetensors": "x"}, []),
    ],
)  # fmt: skip
def test_the_loaded_files_are_found(tmp_path: Path, there: dict[str, object], wanted: list[str]) -> None:
    for name, content in there.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert [file.name for file in weight_files(tmp_path)] == wanted
