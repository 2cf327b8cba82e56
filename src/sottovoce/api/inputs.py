"""What the verbs are given: a model or its name, speech or where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sottovoce.checkpoint.load import load
from sottovoce.data.dataset import DataSet
from sottovoce.data.load import load_data, load_each
from sottovoce.models.speech_model import SpeechModel

HUB_SURPLUS = 10  # utterances fetched from the Hub for each one that is drawn


def loaded(model: str | Path | SpeechModel) -> SpeechModel:
    """Return `model`, loaded if it is a name or a folder. Raises `ModelError`."""
    return model if isinstance(model, SpeechModel) else load(model)


def calibration_sets(calibration: str | Path | DataSet | Sequence[str | Path | DataSet], utterances: int | None) -> list[DataSet]:
    """Load one data set or several, of which `utterances` will be drawn."""
    sources = [calibration] if isinstance(calibration, str | Path | DataSet) else calibration
    return load_each(sources, lambda source: _enough_of(source, utterances))


def _enough_of(source: str | Path, utterances: int | None) -> DataSet:
    """All there is in a folder; of a data set on the Hub, some times as many as are drawn, not the whole corpus."""
    if str(source).startswith("hf:") and utterances is not None:
        return load_data(source, at_most=HUB_SURPLUS * utterances)
    return load_data(source)
