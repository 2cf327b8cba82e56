"""Work on a Ray cluster: the results of one process, each once, whatever happens to the workers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from sottovoce import api
from sottovoce.cli.evaluate import transcribe
from sottovoce.cli.main import main
from sottovoce.errors import DataError, MachineError, MissingDependencyError, RecipeError
from sottovoce.system.cluster import Cluster, joined_cluster
from tests.conftest import make_tiny


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sottovoce\[ray\]'"), joined_cluster("local"):
        pass
    done = CliRunner().invoke(main, ["transcribe", "nothing", "a.wav", "--ray"])
    assert done.exit_code == 1


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["model", "a.wav", "--ray"], "local"),
        (["--ray", "model", "a.wav"], "local"),
        (["--ray", "bundled:tiny.en", "a.wav"], "local"),
        (["--ray", "head-node:6379", "model", "a.wav"], "head-node:6379"),
        (["--ray", "ray://10.0.0.1:10001", "model", "a.wav"], "ray://10.0.0.1:10001"),
        (["--ray=auto", "model", "a.wav"], "auto"),
        (["model", "a.wav"], None),
    ],
)
def test_what_follows_is_an_address_only_if_it_looks_like_one(words: list[str], address: str | None) -> None:
    assert transcribe.make_context("transcribe", words).params["ray"] == address


def test_no_cluster_is_none() -> None:
    with joined_cluster(None) as cluster:
        assert cluster is None


@pytest.mark.usefixtures("sigint")
def test_ctrl_c_ends_the_command_and_its_cluster(model_folder: Path, speech_folder: Path) -> None:
    pytest.importorskip("ray")
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # the paths of Ray's sockets must be short
        recordings = Path(folder) / "speech"
        recordings.mkdir()
        for audio in speech_folder.glob("*.wav"):
            for i in range(40):
                os.link(audio, recordings / f"{audio.stem}-{i}.wav")
        command = [sys.executable, "-m", "sottovoce", "transcribe", model_folder, recordings, "--ray", "--save", f"{folder}/t"]
        environment = os.environ | {"RAY_TMPDIR": folder, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        while running.poll() is None and not processes_with(f"{folder}/ray"):
            time.sleep(0.1)
        time.sleep(3)
        running.send_signal(signal.SIGINT)
        try:
            _, said = running.communicate(timeout=8)
        except subprocess.TimeoutExpired:  # Python drops one that comes while its hooks around a fork run; a user presses again
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=60)
        assert running.returncode == 130, said
        assert "Traceback" not in said
        until = time.monotonic() + 30
        while (left := processes_with(f"{folder}/ray")) and time.monotonic() < until:
            time.sleep(0.2)
        assert not left


def processes_with(text: str) -> list[str]:
    """The command lines on this machine that have `text`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [words] if text in words else []
    return found


class TestOnACluster:
    @pytest.fixture(scope="class")
    def cluster(self) -> Iterator[Cluster]:
        pytest.importorskip("ray")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
            patch.setenv("RAY_record_task_actor_creation_sites", "0")
            with joined_cluster("local") as cluster:
                assert cluster is not None
                yield cluster

    def test_a_lost_worker_loses_nothing_and_doubles_nothing(self, cluster: Cluster, tmp_path: Path) -> None:
        count, killed = 8, list[int]()

        def kill_one() -> None:
            while not killed:
                for file in tmp_path.glob("started-*"):
                    killed.append(int(file.read_text() or 0) or os.getpid())
                    break
                time.sleep(0.01)
            os.kill(killed[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        found = list(cluster.map(slow_square, ((str(tmp_path), i) for i in range(count))))
        killer.join()
        assert sorted(found) == [i * i for i in range(count)]
        assert len(list(tmp_path.glob("started-*"))) > count  # one was started twice

    def test_an_error_of_the_package_comes_back_as_it_was(self, cluster: Cluster) -> None:
        with pytest.raises(DataError, match="no such thing"):
            list(cluster.map(fail, [("no such thing",)]))

    def test_transcripts_are_those_of_one_process(self, cluster: Cluster, model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
        from tests.conftest import torch

        torch.set_num_threads(1)
        here = api.evaluate(model_folder, speech_folder, against=model_folder, save=tmp_path / "here.jsonl")
        cluster._threads = 1
        there = api.evaluate(model_folder, speech_folder, against=model_folder, save=tmp_path / "there.jsonl", ray="local")
        assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
        assert there.score == here.score
        (tmp_path / "broken.wav").write_bytes(b"no sound")
        words = api.transcribe(model_folder, [speech_folder, tmp_path / "broken.wav"], ray="local", confidence=True)
        assert [Path(name).name for name in words.unusable] == ["broken.wav"]
        assert [t.tokens for t in words.transcripts] == [t.tokens for t in here.transcription.transcripts]

    def test_a_loaded_model_is_refused(self, cluster: Cluster, speech_folder: Path) -> None:
        with pytest.raises(RecipeError, match="load the model themselves"):
            api.transcribe(make_tiny(), [speech_folder], ray="local")

    def test_a_bench_gives_the_results_of_one_process(
        self, cluster: Cluster, model_folder: Path, speech_folder: Path, tmp_path: Path
    ) -> None:
        from sottovoce.bench import run_bench

        recipe = {
            "models": [str(model_folder)],
            "data": [speech_folder.name],
            "methods": ["rtn"],
            "bits": [4, 3],
            "seeds": [0],
        }
        options = {"data": speech_folder.parent, "threads": 1}
        here = run_bench(recipe, tmp_path / "here", **options)  # type: ignore[arg-type]
        there = run_bench(recipe, tmp_path / "there", ray="local", **options)  # type: ignore[arg-type]
        assert sorted(there.computed) == sorted(here.computed)
        assert not there.failed
        assert len(set(there.computed)) == len(there.computed)
        assert results(tmp_path / "there") == results(tmp_path / "here")


def results(folder: Path) -> dict[str, object]:
    """What the cells say, without when and how fast they were made."""
    cells = {file.name: json.loads(file.read_text()) for file in folder.rglob("*.json") if "cache" not in file.parts}
    return {name: cell.get("result") for name, cell in cells.items() if isinstance(cell, dict) and "result" in cell}


def slow_square(folder: str, i: int) -> int:
    """Say who computes, and take a while."""
    (Path(folder) / f"started-{i}-{os.getpid()}-{time.time_ns()}").write_text(str(os.getpid()))
    time.sleep(0.5)
    return i * i


def fail(text: str) -> None:
    raise DataError(text)


class StandIn:
    """A cluster of one machine, as far as `Cluster` asks."""

    def __init__(self, **resources: float) -> None:
        self.resources, self.options = resources, dict[str, object]()

    def nodes(self) -> list[dict[str, object]]:
        return [{"Alive": True, "Resources": self.resources}]

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **options: object) -> object:
        self.options = options
        return lambda function: function


def test_a_cluster_without_a_gpu_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, ended = StandIn(CPU=16.0), list[str]()
    monkeypatch.setattr(ray, "init", lambda **_: None, raising=False)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append("shutdown"), raising=False)
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    with pytest.raises(MachineError, match="no machine of the cluster has a GPU"), joined_cluster("local", gpus=1):
        pass
    assert ended == ["shutdown"]


def test_a_task_on_a_gpu_has_it_to_itself() -> None:
    ray = StandIn(CPU=16.0, GPU=2.0)
    assert (Cluster(ray, 2, gpus=1).slots, ray.options["num_cpus"], ray.options["num_gpus"]) == (2, 2, 1)
    assert Cluster(ray, 2).slots == 8
    assert "num_gpus" not in ray.options
    with pytest.raises(MachineError, match="no machine of the cluster has a GPU"):
        Cluster(StandIn(CPU=16.0), 2, gpus=1)
