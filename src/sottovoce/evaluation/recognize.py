"""The one loop from recordings to recognitions, batch by batch and language by language, for any recognizer."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sottovoce.data.audio import SAMPLE_RATE, split_at_silence
from sottovoce.errors import AudioError
from sottovoce.evaluation.recognizer import Recognition, Recognizer
from sottovoce.models.batching import batches_by_language
from sottovoce.models.languages import DETECT


@dataclass(frozen=True, kw_only=True)
class RecognizedRecording:
    """The recognition of recording number `index`. `pieces`: more than 1 if it was cut at silence and joined again."""

    index: int
    recognition: Recognition
    duration_s: float
    pieces: int


@dataclass(frozen=True, kw_only=True)
class RecognizedBatch:
    """The recordings of one batch that could be used, and the seconds that encoder (with features) and decoder took for them."""

    recordings: list[RecognizedRecording]
    encoder_s: float
    decoder_s: float


def recognize_batches(
    recognizer: Recognizer,
    recordings: Sequence[Callable[[], np.ndarray]],
    languages: Sequence[str | None],
    batch_size: int,
    *,
    confidence: bool = False,
    on_unusable: Callable[[int, AudioError], None] | None = None,
) -> Iterator[RecognizedBatch]:
    """Recognize `recordings` in batches of at most `batch_size`, none of which mixes languages; yield each batch when it is done.

    `recordings`: functions that give float32 `[n_samples]` at 16 kHz, called when their batch is due, so that memory holds one batch.
    `languages`: a code for each, "auto" (the model finds it) or None (the model's default). A recording longer than one forward pass goes
    through the model's own long-form procedure (all of its time counts as the decoder's, and it has no log-probabilities); where there is
    none, it is cut at silence and joined again. `on_unusable`: is told the number of a recording that raises `AudioError`, which is then
    left out; without it the error is raised.
    """
    for indices in batches_by_language(range(len(recordings)), languages, batch_size):
        usable, samples = list[int](), list[np.ndarray]()
        for index in indices:
            try:
                samples.append(recordings[index]())
            except AudioError as exc:
                if on_unusable is None:
                    raise
                on_unusable(index, exc)
            else:
                usable.append(index)
        yield _recognize_batch(recognizer, usable, samples, languages[indices[0]], batch_size, confidence)


def _recognize_batch(
    recognizer: Recognizer,
    indices: Sequence[int],
    recordings: Sequence[np.ndarray],
    language: str | None,
    batch_size: int,
    confidence: bool,
) -> RecognizedBatch:
    began = time.perf_counter()
    long = {
        i: found
        for i, samples in enumerate(recordings)
        if len(samples) > recognizer.max_duration_s * SAMPLE_RATE and (found := recognizer.recognize_long(samples, language)) is not None
    }
    long_s = time.perf_counter() - began
    pieces = [[] if i in long else split_at_silence(samples, recognizer.max_duration_s) for i, samples in enumerate(recordings)]
    flat = [piece for parts in pieces for piece in parts]
    # A recording of hours is many pieces: in batches of their own, so that memory does not grow with its length.
    batches = [
        recognizer.recognize(flat[first : first + batch_size], language, confidence=confidence) for first in range(0, len(flat), batch_size)
    ]
    pending = iter([recognition for batch in batches for recognition in batch.recognitions])
    recognized = []
    for i, (index, samples, parts) in enumerate(zip(indices, recordings, pieces, strict=True)):
        joined = long[i] if i in long else _joined([next(pending) for _ in parts])
        if joined.language is None and language != DETECT:
            joined = replace(joined, language=language)
        recognized.append(
            RecognizedRecording(index=index, recognition=joined, duration_s=len(samples) / SAMPLE_RATE, pieces=max(1, len(parts)))
        )
    return RecognizedBatch(
        recordings=recognized,
        encoder_s=sum(batch.encoder_s for batch in batches),
        decoder_s=sum(batch.decoder_s for batch in batches) + long_s,
    )


def _joined(parts: Sequence[Recognition]) -> Recognition:
    """Join the recognitions of the pieces of one recording; its language is that of most pieces."""
    return Recognition(
        text=" ".join(part.text for part in parts if part.text),
        tokens=tuple(token for part in parts for token in part.tokens),
        ended=all(part.ended for part in parts),
        log_probabilities=tuple(p for part in parts for p in part.log_probabilities),
        language=Counter(part.language for part in parts).most_common(1)[0][0],
        decoding=parts[0].decoding,
        temperature=max(part.temperature for part in parts),
    )
