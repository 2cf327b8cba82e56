"""A quantized folder against flipped bytes and against recipes that are not its own."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce import api
from sottovoce.api.tuning import open_quantized
from sottovoce.backends.source import open_source
from sottovoce.checkpoint import manifest as manifests
from sottovoce.checkpoint.manifest import MANIFEST, read_manifest, write_sealed
from sottovoce.cli.main import main
from sottovoce.core.affine import Affine
from sottovoce.errors import CheckpointError
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe, Rule
from tests.cli.test_cli import run

THOROUGH = "SOTTOVOCE_THOROUGH" in os.environ  # every byte of the JSON files, 2,000 of the weights


@pytest.fixture(scope="module")
def folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "out"
    rules = (Rule(match="fc1", bits=8), Rule(match="encoder.*q_proj", bits=16))
    recipe = Recipe(method=method_named("rtn"), format=Affine(bits=4, group_size=32), rules=rules)
    api.quantize(model_folder, out, recipe=recipe)
    return out


def test_any_flipped_byte_is_found_and_the_file_named(folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    flips = 0
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    chance = random.Random(0)  # noqa: S311 - places to damage, no secret
    for file in sorted(copy.iterdir()):
        whole = file.read_bytes()
        every = range(len(whole)) if THOROUGH and file.suffix != ".safetensors" else ()
        for place in every or sorted(chance.sample(range(len(whole)), min(len(whole), 2000 if THOROUGH else 40))):
            flips += 1
            damaged = bytearray(whole)
            damaged[place] ^= 1 << chance.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError) as caught:
                read_manifest(copy)
            # In the manifest, a flip can make another file's entry wrong before its own checksum is looked at: never after.
            assert file.name in str(caught.value) or (file.name == MANIFEST and "format version" in str(caught.value))
        file.write_bytes(whole)
    read_manifest(copy)
    record_property("flips", flips)


def test_a_sound_folder_is_verified(folder: Path) -> None:
    checked = api.verify(folder)
    assert checked.layers == len(read_manifest(folder).layers)
    assert checked.unlisted == ()
    code, printed, _ = run("verify", folder)
    assert code == 0
    assert f"{checked.layers} layers" in printed
    assert json.loads(run("verify", folder, "--json")[1])["weights"] == checked.weights


@pytest.mark.parametrize("target", ["gguf", "onnx"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_targets_folder_is_verified(target: str, symmetric: bool, model_folder: Path, tmp_path: Path) -> None:
    from sottovoce.backends.registry import target_named

    recipe = Recipe(
        method=method_named("rtn"), format=target_named(target).format(symmetric=symmetric), rules=(Rule(match="head|proj_out", bits=8),)
    )
    api.quantize(model_folder, tmp_path / "out", recipe=recipe, target=target)
    assert api.verify(tmp_path / "out").weights > 0


@pytest.mark.parametrize("opens", [api.load, api.verify, open_quantized, open_source])
def test_opening_a_folder_hashes_each_file_once(opens: Callable[[Path], object], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = list[str]()
    digest = manifests.sha256
    monkeypatch.setattr(manifests, "sha256", lambda file: hashed.append(file.name) or digest(file))
    opens(folder)
    assert sorted(hashed) == sorted(read_names(folder))


def read_names(folder: Path) -> list[str]:
    """The names in a folder, but for its manifest."""
    return [file.name for file in folder.iterdir() if file.name != MANIFEST]


def test_what_was_added_is_named(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "pytorch_model.bin").write_bytes(b"")
    assert api.verify(copy).unlisted == ("pytorch_model.bin",)
    assert "not written by sottovoce: pytorch_model.bin" in run("verify", copy)[1]


FORGERIES: dict[str, tuple[Callable[[dict], object], str]] = {
    "another width in the plan": (lambda m: m["plan"]["layers"][1]["format"].update(bits=3), "do not fit together|do not agree"),
    "another grouping in the plan": (lambda m: m["plan"]["layers"][1]["format"].update(group_size=64), "do not fit together"),
    "another symmetry in the plan": (
        lambda m: m["plan"]["layers"][1]["format"].update(symmetric=True),
        "do not fit together|another quant",
    ),
    "another shape in the plan": (lambda m: m["plan"]["layers"][1].update(shape=[1, 64]), "of shape"),
    "a layer less in the plan": (lambda m: m["plan"]["layers"].pop(), "same layers|not one that config.json describes|not in the plan"),
    "a layer more in the plan": (lambda m: m["plan"]["ignored"].append("model.other"), "same layers"),
    "a layer less in the reports": (lambda m: m["layers"].pop(), "do not agree"),
    "a layer renamed in the reports": (lambda m: m["layers"][0].update(name="model.other"), "not in the plan"),
    "a width in the report": (lambda m: m["layers"][0].update(bits=2), "do not agree"),
    "exact minima": (lambda m: m["plan"]["layers"][1]["format"].update(float16_min=True), "float16"),
}
NO_MANIFEST: dict[str, tuple[Callable[[dict], object], str]] = {
    "a format that is none": (lambda m: m["plan"]["layers"][0]["format"].update(bits=7), "bits = 7"),
    "a format that is not known": (lambda m: m["plan"]["layers"][0]["format"].update(name="base 3"), "'base 3' is not known"),
    "a method that is not known": (lambda m: m["recipe"]["method"].update(algorithm="best"), "'best' is not known"),
    "an unknown setting": (lambda m: m["recipe"].update(surprise=1), "unknown key 'surprise'"),
    "an unknown key": (lambda m: m.update(surprise=1), "unknown key 'surprise'"),
    "text for a number": (lambda m: m["layers"][0].update(bits="4"), "wanted a whole number, got '4'"),
    "no plan": (lambda m: m.pop("plan"), "plan"),
}


def forged(folder: Path, copy: Path, change: Callable[[dict], object]) -> Path:
    shutil.copytree(folder, copy)
    content = json.loads((copy / MANIFEST).read_text())
    change(content)
    write_sealed(copy, content)
    return copy


@pytest.mark.parametrize("forgery", sorted(FORGERIES))
def test_a_manifest_that_is_sealed_but_wrong_is_found(forgery: str, folder: Path, tmp_path: Path) -> None:
    change, message = FORGERIES[forgery]
    copy = forged(folder, tmp_path / "copy", change)
    with pytest.raises(CheckpointError, match=message):
        api.verify(copy)


@pytest.mark.parametrize("forgery", sorted(NO_MANIFEST))
def test_a_sealed_file_that_is_no_manifest_is_refused(forgery: str, folder: Path, tmp_path: Path) -> None:
    change, message = NO_MANIFEST[forgery]
    with pytest.raises(CheckpointError, match=message):
        read_manifest(forged(folder, tmp_path / "copy", change))


def test_names_in_a_manifest_stay_inside_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    record = {"bytes": 2, "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}
    for i, name in enumerate(("../outside.json", str(tmp_path / "outside.json"), "a/../config.json")):
        with pytest.raises(CheckpointError, match="missing"):
            read_manifest(forged(folder, tmp_path / str(i), lambda m, name=name: m["files"].update({name: record})))


def test_verify_is_listed() -> None:
    assert "verify" in main.commands
