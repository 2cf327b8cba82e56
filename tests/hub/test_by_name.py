"""A quantized repository on the Hub, given by its name: it is what its folder is here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from sottovoce import api
from sottovoce.api.certified_speech import recording_hashes
from sottovoce.api.origin import check_origin
from sottovoce.backends.registry import target_named
from sottovoce.checkpoint.manifest import ConfidenceRecord, Manifest, read_manifest, store_confidence, write_manifest
from sottovoce.cli.as_json import stored_scaling
from sottovoce.errors import DataError
from sottovoce.evaluation.confidence import fit_scalings
from sottovoce.evaluation.context import ShortContext
from sottovoce.evaluation.recognizer import window_of
from sottovoce.models.load import local_folder, public_name
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from tests.cli.test_cli import run
from tests.evaluation.test_confidence import sampled_confidences
from tests.hub.fake_hub import FakeHub

NAME, TUNED = "me/tiny", ShortContext(margin=16, smallest=32)


@pytest.fixture
def folder(model_folder: Path, speech_folder: Path, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What lies on the Hub as `NAME`: a folder that was tuned and chosen, with scalings of confidences."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "tiny-4bit"
    recipe = Recipe(method=method_named("rtn"), format=target_named("transcribe.cpp").format(bits=4))
    api.quantize(model_folder, out, recipe=recipe, target="transcribe.cpp")
    write_manifest(out, replace(read_manifest(out), short_context=TUNED, chosen_on=recording_hashes(speech_folder)))
    words = [sampled_confidences(400, 0.5, -1.0, seed=seed) for seed in (0, 1)]
    store_confidence(out, ConfidenceRecord(fitted=fit_scalings(words, (0, 1)), data="held-out", seed=0))
    assert run("push", out, NAME)[0] == 0
    assert f"models/{NAME}" in hub.repositories
    return out


def as_published(manifest: Manifest) -> Manifest:
    """The card on the Hub names the repository, and the original has no path."""
    files = {name: record for name, record in manifest.files.items() if name != "README.md"}
    return replace(manifest, source=public_name(manifest.source), files=files)


def test_what_is_known_of_it_is_known_by_its_name(folder: Path, model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    assert as_published(api.inspect(NAME)) == as_published(read_manifest(folder))
    assert stored_scaling(NAME, "platt") == stored_scaling(str(folder), "platt")
    recognizer = api.open_recognizer(NAME)
    assert recognizer.source == NAME
    assert recognizer.stored_bytes == (folder / "model.safetensors").stat().st_size
    assert window_of(recognizer).tuned == TUNED
    with pytest.raises(DataError, match=rf"{NAME} was chosen by \d+ of these recordings"):
        api.certify(NAME, speech_folder, against=model_folder, ledger=tmp_path / "looks.jsonl")
    check_origin(NAME, local_folder(NAME), read_manifest(folder))
    for command in ("inspect", "verify"):
        code, printed, shown = run(command, NAME)
        assert code == 0, shown
        assert NAME in printed
    code, printed, shown = run("transcribe", NAME, speech_folder / "u0.wav", "--json", "--confidence", "platt")
    assert code == 0, shown
    assert json.loads(printed)[0]["words"]


def test_it_runs_in_other_runtimes(folder: Path, tmp_path: Path) -> None:
    recognizer = api.open_recognizer(NAME, "compressed-tensors")
    assert recognizer.stored_bytes == (folder / "model.safetensors").stat().st_size
    assert window_of(recognizer).tuned == TUNED
    pytest.importorskip("gguf")
    wanted = api.export(folder, "transcribe.cpp", tmp_path / "here.gguf", verify=False).bytes
    assert api.export(NAME, "transcribe.cpp", tmp_path / "there.gguf", verify=False).bytes == wanted
    pytest.importorskip("transcribe_cpp")
    assert api.open_recognizer(NAME, "transcribe.cpp").stored_bytes == wanted


@pytest.mark.parametrize("place", [Path("out/tiny"), "./out/tiny", "/out/tiny"])
def test_a_path_is_never_asked_of_the_hub(place: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[object]()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *words: asked.append(words))
    assert local_folder(place) == Path(place)
    for command in (("inspect",), ("verify",), ("export",)):
        more = ("onnxruntime", "x") if command == ("export",) else ()
        assert run(*command, str(place) if isinstance(place, str) else f"./{place}", *more)[0] == 1
    assert not asked
