"""Several processes quantize together: the same bytes as one, and one sentence when something is wrong."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sottovoce import api
from sottovoce.core.affine import Affine
from sottovoce.core.rtn import rtn
from sottovoce.errors import MachineError
from sottovoce.quantization.layer import LayerReport, LayerResult
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.sharding import _from_bytes, _to_bytes
from sottovoce.system.ranks import ALONE
from sottovoce.system.torchrun import refuse_ranks
from tests.forked import Forked

UTTERANCES = 32  # four groups of eight


@pytest.fixture(scope="module")
def speech(speech_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twelve recordings again and again, each time with other texts."""
    folder = tmp_path_factory.mktemp("ranks")
    rows = []
    for i in range(UTTERANCES):
        rows.append(f'{{"id": "v{i}", "audio": "{speech_folder}/u{i % 12}.wav", "speaker": "s{i}", "text": "text of {i * i}"}}')
    (folder / "manifest.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def start(model: Path, out: Path, speech: Path, size: int, *more: str, seeds: tuple[int, ...] = ()) -> list[Forked]:
    """Start the processes as torchrun would, but so that each can be ended by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(size):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in ranks.items()}
        command = ["quantize", model, out, "--calibration", speech, "--threads", "1", "--seed", seeds[rank] if seeds else 0, *more]
        found.append(Forked(command, out.parent / f"logs-{rank}", environment=environment))
    return found


def outcome(processes: list[Forked]) -> tuple[list[int], str, str]:
    ended = [process.finish(within_s=300) for process in processes]
    return [code for code, _, _ in ended], "".join(out for _, out, _ in ended), "".join(err for _, _, err in ended)


def content(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def by_one_process(model: Path, out: Path, speech: Path, method: str, target: str | None = "torch") -> bytes:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        api.quantize(model, out, recipe=Recipe(method=METHODS[method]), target=target, calibration=speech)
    finally:
        torch.set_num_threads(before)
    return content(out)


@pytest.mark.parametrize("method", ["fade", "awq"])
def test_torchrun_gives_the_bytes_of_one_process(method: str, model_folder: Path, speech: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    arguments = ["-m", "sottovoce", "quantize", str(model_folder), str(tmp_path / "two"), "--calibration", str(speech), "--target", "torch"]
    done = subprocess.run([*command, *arguments, "--method", method, "--threads", "1"], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model.encoder.layers.0.fc1") <= 2  # the tables of one process, not of two
    assert content(tmp_path / "two") == by_one_process(model_folder, tmp_path / "one", speech, method)


def test_four_processes_give_the_bytes_of_one(model_folder: Path, speech: Path, tmp_path: Path) -> None:
    codes, _, errors = outcome(start(model_folder, tmp_path / "four", speech, 4))
    assert codes == [0] * 4, errors
    assert content(tmp_path / "four") == by_one_process(model_folder, tmp_path / "one", speech, "fade", target=None)


def test_a_process_that_dies_ends_the_others_at_once_and_the_run_goes_on(model_folder: Path, speech: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    leader, other = start(model_folder, out, speech, 2)
    unfinished = tmp_path / ".out.unfinished"
    while not list(unfinished.glob("layer-*")):
        assert leader.is_alive(), leader.finish()
        time.sleep(0.02)
    other.send(signal.SIGKILL)
    died = time.monotonic()
    codes, _, errors = outcome([leader, other])
    assert time.monotonic() - died < 60
    assert codes == [1, -signal.SIGKILL]
    assert errors.count("Error:") == 1
    assert "another of the processes has ended, so this one ends too; finished layers are kept" in errors
    assert "Traceback" not in errors
    assert list(unfinished.glob("layer-*"))  # as it says
    codes, _, errors = outcome(start(model_folder, out, speech, 2, "--resume"))
    assert codes == [0, 0], errors
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    api.quantize(model_folder, tmp_path / "one", calibration=speech)
    torch.set_num_threads(before)
    assert content(out) == content(tmp_path / "one")


def test_processes_that_differ_are_refused_in_one_sentence(model_folder: Path, speech: Path, tmp_path: Path) -> None:
    codes, _, errors = outcome(start(model_folder, tmp_path / "out", speech, 2, "--utterances", "12", seeds=(0, 1)))
    assert codes == [1, 1]
    assert errors.count("Error:") == 1
    assert "process 1 of 2 differs from process 0 in calibration, seed" in errors
    assert not (tmp_path / "out").exists()


def test_what_one_process_does_is_refused_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(MachineError, match="a fit runs in one process, and torchrun has started 3"):
        refuse_ranks("a fit")


def test_a_layer_survives_the_way_to_another_process() -> None:
    weight = rtn(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), Affine(bits=3))
    report = LayerReport(name="a", part="head", bits=3, bits_per_weight=3.5, weights=512, vulnerability=0.1, outlier_ratio=2.0)
    found = _from_bytes(_to_bytes(LayerResult(weight, torch.ones(8), report)))
    assert found.report == report
    assert found.bias is not None
    assert found.bias.tolist() == [1.0] * 8
    assert torch.equal(found.weight.codes, weight.codes)
    assert torch.equal(found.weight.dequantize(), weight.dequantize())


def test_a_process_alone_shares_with_itself() -> None:
    assert ALONE.exchange({"a": 1}) == [{"a": 1}]
    assert list(ALONE.gather_rows({2: torch.ones(1, 1), 1: torch.zeros(1, 1)})) == [1, 2]
    ALONE.compare({"a": 1})
