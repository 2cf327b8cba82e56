"""What is replaced by a quantized folder, and what is not."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce import api
from sottovoce.checkpoint.certificates import store_certificate
from sottovoce.checkpoint.manifest import MANIFEST, read_manifest
from sottovoce.checkpoint.save import refuse_existing
from sottovoce.core.affine import Affine
from sottovoce.errors import OutputError
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from tests.evaluation.test_certificate import certified, some_losses

RECIPE = Recipe(method=method_named("rtn"), format=Affine(bits=4, group_size=32))


@pytest.fixture(scope="module")
def written(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "four"
    api.quantize(model_folder, out, recipe=RECIPE)
    return out


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "four"))


def test_files_of_the_user_are_not_deleted_with_a_replaced_folder(model_folder: Path, folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "more").mkdir()
    (folder / "more" / "a.py").touch()
    with pytest.raises(OutputError, match=r"four holds more/a\.py, which sottovoce did not write, so it is not replaced; move that away"):
        api.quantize(model_folder, folder, recipe=RECIPE, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"


def test_what_the_hub_adds_is_replaced_with_the_folder(model_folder: Path, folder: Path) -> None:
    (folder / ".gitattributes").touch()
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "CACHEDIR.TAG").touch()
    api.quantize(model_folder, folder, recipe=RECIPE, overwrite=True)
    assert not (folder / ".cache").exists()


@pytest.mark.parametrize("write", ["quantize", "certificate"])
def test_a_link_to_a_folder_stays_a_link(model_folder: Path, folder: Path, write: str) -> None:
    latest = folder.parent / "latest"
    latest.symlink_to("four")
    before = read_manifest(folder)
    if write == "quantize":
        api.quantize(model_folder, latest, recipe=replace(RECIPE, format=Affine(bits=3, group_size=32)), overwrite=True)
    else:
        store_certificate(latest, certified(some_losses(20)))
    assert latest.is_symlink()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["four", "latest"]
    assert read_manifest(folder) != before
    assert api.verify(folder).unlisted == ()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda manifest: manifest.write_text("{"), "it is not known which of its files are yours"),
        (lambda manifest: manifest.write_text('{"format_version": 2}'), "it lists no files"),
        (lambda manifest: manifest.write_text('{"format_version": 99, "files": {}}'), "is of format version 99"),
    ],
)
def test_a_folder_whose_manifest_does_not_tell_its_files_stays(folder: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(folder / MANIFEST)
    with pytest.raises(OutputError, match=words):
        refuse_existing(folder, overwrite=True)
