"""What the verbs are given: a model or its name, speech or where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sottovoce.backends.registry import refuse_export
from sottovoce.checkpoint.load import load as load_named
from sottovoce.checkpoint.load import refuse_quantized
from sottovoce.data.dataset import DataSet
from sottovoce.data.hub import PREFIX
from sottovoce.data.load import listings, load_data, load_each
from sottovoce.errors import DataError, ModelError
from sottovoce.evaluation.recognizer import Recognizer
from sottovoce.models.speech_model import SpeechModel
from sottovoce.system.outputs import Output, check_outputs

Sources = str | Path | DataSet | Sequence[str | Path | DataSet]  # one data set or several
HUB_SURPLUS = 10  # utterances fetched from the Hub for each one that is drawn


def load(source: str | Path) -> SpeechModel:
    """Load a recognizer by Hub id, folder (transformers, faster-whisper, or quantized by us) or `bundled:NAME`. Raises `ModelError`."""
    try:
        return load_named(source)
    except ModelError:
        refuse_export(source)
        raise


def loaded(model: str | Path | SpeechModel) -> SpeechModel:
    """Return `model`, loaded if it is a name or a folder. Raises `ModelError`."""
    return model if isinstance(model, SpeechModel) else load(model)


def loaded_original(model: str | Path | SpeechModel) -> SpeechModel:
    """Return `model` as `loaded` does. Raises `ModelError` also for a model that was read from a quantized folder."""
    return refuse_quantized(loaded(model))


def loaded_original_of(
    quantized: SpeechModel, against: str | Path | SpeechModel | None, source: str, checkpoint: str | Path
) -> SpeechModel:
    """Load the original of `quantized`, which was read from `checkpoint`: `against`, or what the folder names (`source`).

    Raises `ModelError` if it cannot be had, or has other layers.
    """
    try:
        original = loaded_original(against if against is not None else source)
    except ModelError as exc:
        if against is not None:
            raise
        raise ModelError(f"{checkpoint}: its original cannot be loaded ({exc}); name it with --against") from exc
    if quantized.layer_shapes() != original.layer_shapes():
        raise ModelError(f"{original.source}: has other layers than {checkpoint}, so it is not its original ({source}); give that one")
    return original


def calibration_sets(calibration: Sources, utterances: int | None) -> list[DataSet]:
    """Load one data set or several, of which `utterances` will be drawn."""
    sources = [calibration] if isinstance(calibration, str | Path | DataSet) else calibration
    return load_each(sources, lambda source: _enough_of(source, utterances))


def check_counts(**counts: int | None) -> None:
    """Raise `DataError` for a number of utterances below 1, by the name of its argument; None: all there are."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise DataError(f"{name} = {count}: so many cannot be drawn; give at least 1")


def drawn_count(sets: Sequence[DataSet], wanted: int) -> int | None:
    """Return how many utterances are drawn of `sets` before folds are made of them, None for all.

    Of a single set all may be drawn, since those by speakers who are held out are left out; of several the weights decide.
    """
    return None if len(sets) == 1 else wanted


def limited(data: str | Path | DataSet, limit: int | None) -> DataSet:
    """Return the first `limit` utterances of a data set, loaded if it is named; None: all. Raises `DataError`, also for less than one."""
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} utterances leaves nothing; give 1 or more")
    return data.take(limit) if isinstance(data, DataSet) else load_data(data, at_most=limit)


def check_written(
    outputs: Sequence[Output], *, models: Sequence[str | Path | SpeechModel | Recognizer | None], data: Sources, others: Sequence[Path] = ()
) -> None:
    """Look at files that will be written beside what the verb reads, before any of it is loaded; `others`: further files of the verb.

    Raises `OutputError` as `check_outputs` does.
    """
    if all(place is None for place, _ in outputs):
        return
    named = [model if isinstance(model, str | Path) else model.source for model in models if model is not None]
    places = [Path(name).expanduser() for name in named if str(name)]
    sources = [data] if isinstance(data, str | Path | DataSet) else data
    read = [file for source in sources if not isinstance(source, DataSet) for file in listings(source)]
    check_outputs(
        outputs,
        reserved=[*others, *read, *(place for place in places if place.is_file())],
        folders=[place for place in places if place.is_dir()],
    )


def _enough_of(source: str | Path, utterances: int | None) -> DataSet:
    """All there is in a folder; of a data set on the Hub, some times as many as are drawn, not the whole corpus."""
    if str(source).startswith(PREFIX) and utterances is not None:
        return load_data(source, at_most=HUB_SURPLUS * utterances)
    return load_data(source)
