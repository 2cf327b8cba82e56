"""Transcribe on a cluster: every worker opens the recognizer once, and takes batch after batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sottovoce.api.opening import open_recognizer
from sottovoce.data.dataset import Utterance
from sottovoce.evaluation.fallback import Fallback
from sottovoce.evaluation.recognizer import Recognizer
from sottovoce.evaluation.transcribe import BatchSettings, TranscribedBatch, transcribe_batch
from sottovoce.system.cluster import Cluster
from sottovoce.system.devices import Placement


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What `open_recognizer` is given. `model`: a Hub id, or a path that every machine of the cluster has."""

    model: str
    runtime: str | None
    fallback: Fallback | None
    placement: Placement


_opened = dict[Opening, Recognizer]()  # of this worker


def transcribe_on(
    cluster: Cluster, opening: Opening, settings: BatchSettings, batches: Sequence[Sequence[Utterance]]
) -> Iterator[TranscribedBatch]:
    """Yield the batches as they are finished, in any order. Raises what `transcribe_batch` raises, and `MachineError`."""
    return cluster.map(_transcribe, ((opening, settings, batch) for batch in batches))


def _transcribe(opening: Opening, settings: BatchSettings, batch: Sequence[Utterance]) -> TranscribedBatch:
    if opening not in _opened:
        _opened.clear()  # one model at a time
        _opened[opening] = open_recognizer(opening.model, opening.runtime, fallback=opening.fallback, placement=opening.placement)
    return transcribe_batch(_opened[opening], settings, batch)
