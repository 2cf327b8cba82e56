"""Transcribe on a cluster: every worker opens the recognizer once, and takes batch after batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sottovoce.api.opening import Opening
from sottovoce.data.dataset import Utterance
from sottovoce.evaluation.recognizer import Recognizer
from sottovoce.evaluation.transcribe import BatchSettings, TranscribedBatch, transcribe_batch
from sottovoce.system.cluster import Cluster

_opened = dict[tuple[str, Opening], Recognizer]()  # of this worker


def transcribe_on(
    cluster: Cluster, model: str, opening: Opening, settings: BatchSettings, batches: Sequence[Sequence[Utterance]]
) -> Iterator[TranscribedBatch]:
    """Yield the batches as they are finished, in any order; `model`: a Hub id, or a path that every machine of the cluster has.

    Raises what `transcribe_batch` raises, and `MachineError`.
    """
    return cluster.map(_transcribe, ((model, opening, settings, batch) for batch in batches))


def _transcribe(model: str, opening: Opening, settings: BatchSettings, batch: Sequence[Utterance]) -> TranscribedBatch:
    if (model, opening) not in _opened:
        _opened.clear()  # one model at a time
        _opened[model, opening] = opening.of(model)
    return transcribe_batch(_opened[model, opening], settings, batch)
