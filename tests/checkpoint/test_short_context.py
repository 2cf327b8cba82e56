"""What a folder says of the contexts it was tuned for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce import api
from sottovoce.checkpoint.manifest import MANIFEST, read_manifest, write_manifest, write_sealed
from sottovoce.core.affine import Affine
from sottovoce.errors import CheckpointError
from sottovoce.evaluation.context import ShortContext
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    api.quantize(model_folder, tmp_path / "out", recipe=Recipe(method=method_named("rtn"), format=Affine(bits=4, group_size=32)))
    return tmp_path / "out"


def test_the_manifest_carries_it(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.short_context is None
    tuned = ShortContext(margin=16, smallest=100)
    write_manifest(folder, replace(manifest, short_context=tuned))
    assert read_manifest(folder).short_context == tuned


def test_a_margin_below_zero_is_refused(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    write_sealed(folder, content | {"short_context": {"margin": -1, "smallest": 100}})
    with pytest.raises(CheckpointError, match="margin of -1"):
        read_manifest(folder)
