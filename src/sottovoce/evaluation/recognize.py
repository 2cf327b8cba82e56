"""The one loop from recordings to recognitions, batch by batch and language by language, for any recognizer."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sottovoce.data.audio import SAMPLE_RATE, split_at_silence
from sottovoce.errors import AudioError
from sottovoce.evaluation.context import FULL, Context
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch, Recognizer, WindowedRecognizer, window_of
from sottovoce.models.batching import batches_by_language
from sottovoce.models.languages import DETECT


@dataclass(frozen=True, kw_only=True)
class RecognizedRecording:
    """The recognition of recording number `index`. `pieces`: more than 1 if it was cut at silence and joined again.

    `context`: the encoder positions that were worked through, None: the whole window.
    """

    index: int
    recognition: Recognition
    duration_s: float
    pieces: int
    context: int | None = None


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
    context: Context = FULL,
    on_unusable: Callable[[int, AudioError], None] | None = None,
) -> Iterator[RecognizedBatch]:
    """Recognize `recordings` in batches of at most `batch_size`, none of which mixes languages; yield each batch when it is done.

    `recordings`: functions that give float32 `[n_samples]` at 16 kHz, called when their batch is due, so that memory holds one batch.
    `languages`: a code for each, "auto" (the model finds it) or None (the model's default). A recording longer than one forward pass goes
    through the model's own long-form procedure (all of its time counts as the decoder's, and it has no log-probabilities); where there is
    none, it is cut at silence and joined again; its encoder windows are whole ones. `context`: of the encoder for each other recording, as
    `Context.resolve` returned it for this recognizer; one shorter than a recording raises `AudioError`. `on_unusable`: is told the number
    of a recording that raises `AudioError`, which is then left out; without it the error is raised.
    """
    for indices in batches_by_language(range(len(recordings)), languages, batch_size):
        usable, samples, contexts = list[int](), list[np.ndarray](), list[int | None]()
        for index in indices:
            try:
                read = recordings[index]()
                long = len(read) > recognizer.max_duration_s * SAMPLE_RATE
                contexts.append(None if long else context.of(len(read), window_of(recognizer)))
            except AudioError as exc:
                if on_unusable is None:
                    raise
                on_unusable(index, exc)
            else:
                usable.append(index)
                samples.append(read)
        yield _recognize_batch(recognizer, usable, samples, contexts, languages[indices[0]], batch_size, confidence)


def _recognize_batch(
    recognizer: Recognizer,
    indices: Sequence[int],
    recordings: Sequence[np.ndarray],
    contexts: Sequence[int | None],
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
    spans = [context for parts, context in zip(pieces, contexts, strict=True) for _ in parts]
    # A recording of hours is many pieces: in batches of their own, so that memory does not grow with its length.
    batches = [
        _recognize(recognizer, flat[first : first + batch_size], spans[first : first + batch_size], language, confidence)
        for first in range(0, len(flat), batch_size)
    ]
    pending = iter([recognition for batch in batches for recognition in batch.recognitions])
    recognized = []
    for i, (index, samples, parts) in enumerate(zip(indices, recordings, pieces, strict=True)):
        joined = long[i] if i in long else _joined([next(pending) for _ in parts])
        if joined.language is None and language != DETECT:
            joined = replace(joined, language=language)
        recognized.append(
            RecognizedRecording(
                index=index,
                recognition=joined,
                duration_s=len(samples) / SAMPLE_RATE,
                pieces=max(1, len(parts)),
                context=contexts[i],
            )
        )
    return RecognizedBatch(
        recordings=recognized,
        encoder_s=sum(batch.encoder_s for batch in batches),
        decoder_s=sum(batch.decoder_s for batch in batches) + long_s,
    )


def _recognize(
    recognizer: Recognizer, recordings: Sequence[np.ndarray], contexts: Sequence[int | None], language: str | None, confidence: bool
) -> RecognitionBatch:
    """Recognize recordings; a recognizer that knows whole windows only is not asked for anything else."""
    if isinstance(recognizer, WindowedRecognizer) and any(context is not None for context in contexts):
        return recognizer.recognize(recordings, language, confidence=confidence, contexts=contexts)
    return recognizer.recognize(recordings, language, confidence=confidence)


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
