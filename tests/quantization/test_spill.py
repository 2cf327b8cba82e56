"""Activations in a file: the same codes, and little in memory."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import greenlet
import pytest
import torch

from sottovoce.errors import OutputError
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization import spill as module
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.spill import Spill, _collect, held_tensors
from tests.conftest import quantized
from tests.system.test_devices import SPEECH, small_moonshine, small_whisper


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models have tiny tensors."""
    monkeypatch.setattr(module, "LEAST_BYTES", 1024)


@pytest.mark.parametrize(("make", "method"), [(small_whisper, "fade"), (small_moonshine, "fade"), (small_whisper, "gptq")])
def test_the_codes_are_those_without(make: Callable[[], SpeechModel], method: str, tmp_path: Path) -> None:
    model, recipe = make(), Recipe(method=METHODS[method])
    plain = quantized(model, recipe, SPEECH, batch_size=2)
    spilled = quantized(model, recipe, SPEECH, batch_size=2, spill=tmp_path)
    for name, weight in plain.weights.items():
        assert torch.equal(weight.codes, spilled.weights[name].codes), name
    assert [r.outgoing_error for r in plain.reports] == [r.outgoing_error for r in spilled.reports]
    assert not list(tmp_path.iterdir())


def test_a_paused_pass_holds_nothing(tmp_path: Path) -> None:
    network, parent = torch.nn.Linear(2, 2), greenlet.getcurrent()

    def run() -> float:
        first, second = torch.arange(1000.0), {"of": (torch.ones(40, 30).T, [torch.full((300, 2), 2.0)])}
        shared = first
        parent.switch()
        return float(first.sum() + second["of"][0].sum() + second["of"][1][0].sum() + shared[3])  # type: ignore[attr-defined]

    walker, spill = greenlet.greenlet(run), Spill(tmp_path, [network])
    walker.switch()
    held = held_tensors([walker.gr_frame])
    assert len(held) == 3
    spill.park([walker.gr_frame])
    assert [tensor.numel() for tensor in held] == [0, 0, 0]
    with spill.loaded(held[1:2]):
        assert held[1].shape == (30, 40)
        assert held[1].stride() == (1, 30)
        assert held[0].numel() == 0
    spill.bring_back(held)
    assert walker.switch() == 999 * 500 + 1200 + 1200 + 3
    before = spill.most_bytes
    spill.park([inspect.currentframe()])  # places are used again
    assert spill.most_bytes == before
    spill.forget()


def test_what_is_small_shared_or_not_dense_stays(tmp_path: Path) -> None:
    """From 1 KiB on: parameters and buffers of the networks stay, and so do views with gaps or of places that several elements share."""
    network = torch.nn.Linear(32, 32)
    network.register_buffer("table", torch.ones(256))
    whole = torch.ones(64, 64)
    kept = {"small": torch.ones(255), "weight": network.weight, "table": network.table}
    kept |= {"gaps": whole[:, :32], "expanded": torch.ones(1).expand(512)}
    gone = {"least": torch.ones(256), "turned": torch.ones(40, 20).T, "one_row": torch.ones(1, 300)[:, :], "bytes": torch.ones(1024).bool()}
    del whole
    spill = Spill(tmp_path, [network])

    def park(_held: dict[str, torch.Tensor]) -> None:
        spill.park([inspect.currentframe()])

    park({**kept, **gone})
    assert {name for name, tensor in {**kept, **gone}.items() if not tensor.numel()} == set(gone)
    assert spill.most_bytes == 1024 + 3200 + 1200 + 1024
    spill.bring_back([*kept.values(), *gone.values()])
    assert [tensor.shape for tensor in gone.values()] == [(256,), (20, 40), (1, 300), (1024,)]
    assert all(bool(tensor.all()) for tensor in gone.values())
    assert gone["bytes"].dtype == torch.bool
    spill.forget()


def test_tensors_of_the_callers_are_found_each_once() -> None:
    def inner(given: torch.Tensor) -> list[torch.Tensor]:
        again = {"again": [given]}
        return held_tensors([inspect.currentframe(), None]) if again else []

    def outer() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        own, given = torch.ones(1), torch.ones(2)
        return inner(given), own, given

    found, own, given = outer()
    assert [sum(tensor is wanted for tensor in found) for wanted in (own, given)] == [1, 1]


def test_of_what_lies_too_deep_nothing_is_found() -> None:
    tensor = torch.ones(3)
    held: Any = tensor
    for depth in range(7):
        found = dict[int, torch.Tensor]()
        _collect(held, found, 4)
        assert (id(tensor) in found) == (depth <= 4)
        held = [held]


def test_a_disk_that_is_full_or_loses_something_is_named(tmp_path: Path) -> None:
    spill = Spill(tmp_path, [])

    class Full:
        def seek(self, _place: int) -> None: ...

        def write(self, _content: object) -> None:
            raise OSError("no space left")

        def readinto(self, _content: object) -> int:
            return 3

        def close(self) -> None: ...

    large = torch.ones(3 << 18)
    with pytest.raises(OutputError, match=r"activations cannot be written \(no space left\); free 3 MiB or more, or give a larger"):
        with_file(spill, Full()).park([inspect.currentframe()])
    assert large.numel() == 3 << 18
    spill = Spill(tmp_path, [])
    spill.park([inspect.currentframe()])
    assert not large.numel()
    with pytest.raises(OutputError, match="cannot be read back; look at the disk"):
        with_file(spill, Full()).bring_back([large])


def with_file(spill: Spill, file: Any) -> Spill:
    spill._file = file
    return spill
