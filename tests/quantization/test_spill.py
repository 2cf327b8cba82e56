"""Activations in a file: the same codes, and little in memory."""

import inspect
from collections.abc import Callable
from pathlib import Path

import greenlet
import pytest
import torch

from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization import spill as module
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.spill import Spill, held_tensors
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
