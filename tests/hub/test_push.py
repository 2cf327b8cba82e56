"""Uploading to a Hub on this machine: what arrives, what a second run sends, and what is refused."""

import json
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

import sottovoce
from sottovoce import api
from sottovoce.backends.onnx_runtime.layout import DECODER, ENCODER
from sottovoce.backends.registry import target_named
from sottovoce.checkpoint.verify import verify
from sottovoce.core.affine import Affine
from sottovoce.errors import CheckpointError, ExportError, OutputError
from sottovoce.hub import staged
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe, Rule
from tests.cli.test_cli import run
from tests.hub.fake_hub import FakeHub, Repository


@pytest.fixture(scope="module")
def folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pushed") / "tiny-4bit"
    api.quantize(model_folder, out, recipe=Recipe(method=method_named("rtn"), format=Affine(bits=4, group_size=32)))
    return out


def test_a_folder_arrives_whole_private_and_with_its_card(folder: Path, model_folder: Path, hub: FakeHub, tmp_path: Path) -> None:
    code, printed, shown = run("push", folder, "me/tiny-4bit")
    assert code == 0, shown
    assert f"{hub.endpoint}/me/tiny-4bit (private)" in printed
    repository = hub.repositories["models/me/tiny-4bit"]
    assert repository.private
    assert set(repository.files) == {file.name for file in folder.iterdir()}
    assert repository.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    card = repository.files["README.md"].decode()
    assert "THIS_FOLDER" not in card
    assert 'from_pretrained("me/tiny-4bit"' in card
    for published in (card, repository.files["sottovoce.json"].decode()):
        assert model_folder.name in published
        assert str(model_folder.parent) not in published, "a path of this machine"
    assert sum(hub.sent) >= (folder / "model.safetensors").stat().st_size  # by LFS
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    for name, content in repository.files.items():
        (fetched / name).write_bytes(content)
    assert verify(fetched).unlisted == ()  # with the checksum of the card that names the repository


def test_what_was_pushed_is_loaded_by_its_name_whatever_its_widths(
    model_folder: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    recipe = Recipe(method=method_named("rtn"), format=Affine(bits=4, group_size=32), rules=(Rule(match="fc1", bits=8),))
    made = api.quantize(model_folder, tmp_path / "mixed", recipe=recipe).model  # the loader of transformers refuses mixed widths
    assert run("push", tmp_path / "mixed", "me/mixed")[0] == 0
    assert api.load("me/mixed").digest() == made.digest()
    hub.repositories["models/me/mixed"].files["config.json"] += b" "
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other cache"))
    with pytest.raises(CheckpointError, match="config.json: has changed"):
        api.load("me/mixed")


def test_a_second_run_changes_and_sends_nothing(folder: Path, hub: FakeHub) -> None:
    first = sottovoce.push(folder, "tiny-4bit")  # of the token's owner
    assert first.repo == "me/tiny-4bit"
    repository = hub.repositories["models/me/tiny-4bit"]
    before, sent = dict(repository.files), len(hub.sent)
    again = sottovoce.push(folder, "me/tiny-4bit")
    assert (again.files, again.bytes) == (first.files, first.bytes) == (len(before), sum(map(len, before.values())))
    assert repository.files == before
    assert len(hub.sent) == sent
    assert len(repository.commits) == 1


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("by", ["signal", "network"])
def test_after_an_interruption_only_the_rest_is_sent(folder: Path, hub: FakeHub, by: str) -> None:
    arrived = 0

    def interrupt(method: str, _path: str) -> int | None:
        nonlocal arrived
        if method != "PUT":
            return None
        arrived += 1
        if arrived <= 2:
            return None
        if by == "signal":
            if arrived == 3:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # another thread would not wake the one that waits
            time.sleep(2)  # every upload that is under way: a refusal would end the command before the signal does
        return 400

    hub.refuse = interrupt
    code, printed, shown = run("push", folder, "me/tiny-4bit")
    assert code == (130 if by == "signal" else 1), shown
    assert "the same command continues" in shown
    assert not printed
    assert len(hub.sent) == 2
    assert not hub.repositories["models/me/tiny-4bit"].files  # nothing half is shown there
    hub.refuse = lambda _method, _path: None
    assert run("push", folder, "me/tiny-4bit")[0] == 0
    large = [len(content) for content in hub.repositories["models/me/tiny-4bit"].files.values() if len(content) >= 2000]
    assert sorted(hub.sent) == sorted(large)  # each once, over both runs


def test_what_verify_refuses_is_not_sent(folder: Path, hub: FakeHub, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    (damaged / "config.json").write_text("{}")
    for source, words in [
        (damaged, "config.json: has changed"),
        (tmp_path / "absent", "absent: no such file or folder"),
        (Path(__file__), "neither a folder written by sottovoce nor an export"),
    ]:
        code, _, shown = run("push", source, "me/x")
        assert code == 1
        assert words in shown
    assert not hub.repositories
    assert not hub.sent


@pytest.mark.parametrize(("name", "words"), [("absent", "no such file or folder"), ("t.txt", "neither a folder written by sottovoce nor")])
def test_a_wrong_path_is_told_before_a_token_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    (tmp_path / "t.txt").write_text("no model")
    with pytest.raises(CheckpointError, match=words):
        sottovoce.push(tmp_path / name, "me/x")


def test_other_files_stay_and_are_named(folder: Path, hub: FakeHub, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "notes.txt").write_text("secret")
    code, printed, shown = run("push", copy, "me/x", "--json")
    assert code == 0
    assert json.loads(printed)["left_out"] == ["notes.txt"]
    assert "notes.txt was not written by sottovoce" in shown
    assert "notes.txt" not in hub.repositories["models/me/x"].files


def test_an_export_is_opened_in_its_runtime_and_gets_a_card(
    model_folder: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    recipe = Recipe(method=method_named("rtn"), format=target_named("transcribe.cpp").format(bits=4))
    api.quantize(model_folder, tmp_path / "tiny", recipe=recipe, target="transcribe.cpp")
    file = api.export(tmp_path / "tiny", "transcribe.cpp", tmp_path / "tiny.gguf", verify=False).file
    opened = []
    monkeypatch.setattr(staged, "open_runtime", lambda *arguments: opened.append(arguments[:2]))
    assert run("push", file, "me/tiny-gguf")[0] == 0
    assert opened == [("transcribe.cpp", file)]
    files = hub.repositories["models/me/tiny-gguf"].files
    assert set(files) == {"tiny.gguf", "README.md"}
    assert files["tiny.gguf"] == file.read_bytes()
    assert "sottovoce transcribe tiny.gguf speech.wav" in files["README.md"].decode()

    def refuse(runtime: str, model: Path, _threads: int) -> None:
        raise ExportError(f"{model}: {runtime} cannot load it")

    monkeypatch.setattr(staged, "open_runtime", refuse)
    code, _, shown = run("push", file, "me/other")
    assert code == 1
    assert "transcribe.cpp cannot load it" in shown
    assert "models/me/other" not in hub.repositories


ONNX_FILES = (ENCODER, DECODER, "config.json", "page/main.js", "original/vocab.json")
OTHERS = (".env", ".git/config", "notes.txt", "onnx/notes.txt", "original/a.wav", "README.md")


@pytest.fixture
def onnx_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of an export, all of them empty, which its runtime is said to load, and with others."""
    monkeypatch.setattr(staged, "open_runtime", lambda *_: None)
    folder = tmp_path / "tiny-onnx"
    for name in (*ONNX_FILES, *OTHERS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_other_files_beside_an_export_stay_and_are_named(onnx_folder: Path, hub: FakeHub) -> None:
    done = sottovoce.push(onnx_folder, "me/tiny-onnx", public=True)
    assert done.left_out == tuple(sorted(OTHERS))
    files = hub.repositories["models/me/tiny-onnx"].files
    assert set(files) == {*ONNX_FILES, "README.md"}
    card = files["README.md"].decode()
    assert "# tiny-onnx\n" in card
    (onnx_folder / "README.md").write_text(f"{card}\nmy words")  # as fetched from the Hub, and added to
    assert "README.md" not in sottovoce.push(onnx_folder, "me/again").left_out
    assert hub.repositories["models/me/again"].files["README.md"].endswith(b"my words")


def test_the_folder_one_stands_in_has_its_name_in_the_card(onnx_folder: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(onnx_folder)
    sottovoce.push(".", "me/tiny-onnx")
    card = hub.repositories["models/me/tiny-onnx"].files["README.md"].decode()
    assert "# tiny-onnx\n" in card
    assert "hf download me/tiny-onnx --local-dir tiny-onnx\nsottovoce transcribe tiny-onnx speech.wav" in card


def test_public_repositories_are_made_and_used_only_on_request(folder: Path, hub: FakeHub) -> None:
    hub.repositories["models/me/open"] = Repository(private=False)
    code, _, shown = run("push", folder, "me/open")
    assert code == 1
    assert "is public on the Hub" in shown
    assert run("push", folder, "me/open", "--public")[0] == 0
    assert run("push", folder, "me/new", "--public")[0] == 0
    assert not hub.repositories["models/me/new"].private
    hub.repositories["models/me/closed"] = Repository(private=True)
    code, _, shown = run("push", folder, "me/closed", "--public")
    assert code == 1
    assert "is private on the Hub" in shown


@pytest.mark.parametrize(
    ("repo", "prepare", "words"),
    [
        ("me/taken", "dataset", "is a dataset on the Hub, and a model was to be uploaded"),
        ("me/taken", "space", "is a space on the Hub"),
        ("other/tiny", "", "the token has no right to write there"),
        ("a/b/c", "", "is no name of a repository"),
        ("me/-x", "", "is no name of a repository"),
        ("me/tiny", "no token", "log in with `hf auth login`, or set HF_TOKEN"),
        ("me/tiny", "wrong token", "the Hub does not accept the token"),
        ("me/tiny", "offline", "HF_HUB_OFFLINE is set"),
        ("me/tiny", "no network", "cannot be reached"),
        ("me/tiny", "full", "the storage of this account is full; delete what is not needed there, or buy more"),
    ],
)
def test_refusals_are_one_sentence(
    folder: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repo: str, prepare: str, words: str
) -> None:
    if prepare in ("dataset", "space"):
        hub.repositories[f"{prepare}s/{repo}"] = Repository()
    elif prepare == "no token":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    elif prepare == "wrong token":
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    elif prepare == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif prepare == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    elif prepare == "full":
        hub.refuse = lambda _method, path: 402 if path.endswith("batch") else None
    with pytest.raises(OutputError, match=words) as caught:
        sottovoce.push(folder, repo)
    assert "\n" not in str(caught.value)
    assert not any(repository.files for repository in hub.repositories.values())
