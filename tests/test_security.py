"""Nothing is let in: no network unless a Hub id is named, no code from models, nothing written outside of the output."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sottovoce
from sottovoce import api
from sottovoce.core.affine import Affine
from sottovoce.errors import ModelError
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from tests.conftest import make_tiny

OFFLINE = """
import socket, sys
def refuse(*arguments, **options):
    raise SystemExit("a socket was opened")
socket.socket.connect = refuse
socket.create_connection = socket.getaddrinfo = refuse
import json
from sottovoce.cli.main import main
for words in json.loads(sys.argv[1]):
    if code := main(words, standalone_mode=False):
        raise SystemExit(f"{words}: exit code {code}")
"""


def test_nothing_is_asked_of_the_network(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    commands = (
        ["quantize", str(model_folder), out, "--calibration", str(speech_folder), "--target", "gguf"],
        ["evaluate", out, str(speech_folder), "--against", str(model_folder)],
        ["export", out, "gguf", str(tmp_path / "m.gguf"), "--no-verify"],
        ["verify", out],
        ["report", out],
    )
    command = [sys.executable, "-c", OFFLINE, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-500:]


def test_no_code_of_a_model_is_run(tmp_path: Path) -> None:
    """A folder that brings its own classes (`auto_map`) is loaded by transformers' own, or refused; its code never runs."""
    model = make_tiny()
    model.network.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForSpeechSeq2Seq": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    try:
        api.load(tmp_path)
    except ModelError:
        pass
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    model = make_tiny()
    model.network.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    # A pickle that would write a file when loaded.
    (tmp_path / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {tmp_path / 'ran'}'\ntR.".encode())
    with pytest.raises(ModelError):
        api.load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_names_in_manifests_and_models_write_nothing_elsewhere(model_folder: Path, tmp_path: Path) -> None:
    speech, inside = tmp_path / "speech", tmp_path / "inside"
    speech.mkdir()
    inside.mkdir()
    soundfile.write(speech / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    names = ["../../outside", "/etc/outside", "a/../../../outside", "nul\u0000byte", "<script>", "x" * 500]
    rows = [{"audio": str(speech / "a.wav"), "id": name, "text": "words", "speaker": name} for name in names]
    (speech / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = sorted(path for path in tmp_path.rglob("*") if inside not in path.parents)
    recipe = Recipe(method=method_named("gptq"), format=Affine(bits=4, group_size=32))
    api.quantize(model_folder, inside / "out", recipe=recipe, calibration=speech)
    heard = api.evaluate(inside / "out", speech, save=inside / "heard.jsonl")
    assert len(heard.transcription.transcripts) == len(names)
    assert sorted(path for path in tmp_path.rglob("*") if inside not in path.parents) == before
    assert sorted(path.name for path in inside.iterdir()) == ["heard.jsonl", "out"]


def test_the_sources_ask_for_no_foreign_code() -> None:
    for file in Path(sottovoce.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for forbidden in ("trust_remote_code", "import pickle", "torch.load(", "eval(", "exec("):
            found = text.replace(".eval()", "").replace("getattr", "")
            assert forbidden not in found, (file, forbidden)


def test_every_dependency_is_locked_with_hashes_at_the_version_that_is_tested() -> None:
    root = Path(__file__).parent.parent
    blocks = (root / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    locked = {}
    for block in blocks:
        if block and not block.startswith("#"):
            pin, *hashes = block.split()
            name, version = pin.split("==")
            locked[canonicalize_name(name)] = version
            assert any(re.fullmatch("--hash=sha256:[0-9a-f]{64}", word) for word in hashes), pin
    constraints = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in constraints if line and not line.startswith("#"))
    tested = {canonicalize_name(name): version for name, version in tested.items()}
    assert {name: locked[name] for name in locked.keys() & tested.keys()} == {name: tested[name] for name in locked.keys() & tested.keys()}
    with (root / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    for wanted in (*project["dependencies"], *extras):
        assert canonicalize_name(Requirement(wanted).name) in locked
