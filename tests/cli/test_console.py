"""The progress bar: one bar for each kind of work, whatever its details are called."""

import pytest
from rich.progress import Progress as Bars

from sottovoce.cli.console import progress_bar


def test_each_kind_of_work_has_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = list[Bars]()
    real = Bars.start
    monkeypatch.setattr(Bars, "start", lambda bars: (shown.append(bars), real(bars)))
    with progress_bar() as progress:
        for done, name in enumerate(("model.encoder.layers.0.fc1", "lm_head", "proj_out")):
            progress("layers", done, 3, name)
        (bars,) = shown
        assert [(task.description, task.completed) for task in bars.tasks] == [("layers: proj_out", 2)]
        progress("layers", 3, 3)
        progress("transcribing a: b", 1, 2)
        progress("tuning", 4, 9, "KL 1 -> 2")
        found = [(task.description, task.completed, task.total) for task in bars.tasks]
    assert found == [("layers", 3, 3), ("transcribing a: b", 1, 2), ("tuning: KL 1 -> 2", 4, 9)]
