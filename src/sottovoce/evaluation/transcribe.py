"""A data set to transcripts, batch by batch, by any recognizer."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sottovoce.data.audio import SAMPLE_RATE, split_at_silence
from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.errors import AudioError
from sottovoce.evaluation.recognizer import Recognizer, TorchRecognizer
from sottovoce.evaluation.transcript_cache import TranscriptCache
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.models.batching import batches_by_language
from sottovoce.models.speech_model import SpeechModel
from sottovoce.system.progress import Progress, silent

DECODER_BATCH = 32  # utterances; each step of the decoder costs little more for 32 than for 8


@dataclass(frozen=True, kw_only=True)
class Transcription:
    """Transcripts in the order of the data, and the wall-clock seconds of encoder (with features) and decoder.

    `audio_s`: seconds of audio that took that time: those of transcripts made earlier are not in it. `unusable`: the other recordings, each
    with the reason.
    """

    transcripts: tuple[Transcript, ...]
    encoder_s: float
    decoder_s: float
    audio_s: float
    unusable: Mapping[str, str] = field(default_factory=dict)


def transcribe_data(
    recognizer: SpeechModel | Recognizer,
    data: DataSet,
    *,
    language: str | None = None,
    confidence: bool = False,
    lenient: bool = False,
    journal: TranscriptCache | None = None,
    progress: Progress = silent,
) -> Transcription:
    """Transcribe every utterance of `data`. `language`: of those that have none of their own; "auto": found out one by one.

    Recordings longer than one forward pass go through the model's own long-form procedure, one by one (all of their time
    counts as the decoder's); where there is none, they are cut at silence and joined again. `confidence`: also take every
    token's log-probability, but for long recordings, whose procedure gives none. `lenient`: recordings that cannot be used are left
    out and named in the result; else they raise `AudioError`. `journal`: what it knows is not transcribed again, and it is told
    all that is.
    """
    ears: Recognizer = TorchRecognizer(recognizer) if isinstance(recognizer, SpeechModel) else recognizer
    known = {u.id: t for u in data if journal is not None and (t := journal.transcript(u)) is not None}
    unusable = dict[str, str]()
    encoder_s, decoder_s, audio_s = 0.0, 0.0, 0.0
    for spoken, utterances in _batches([utterance for utterance in data if utterance.id not in known], language):
        progress(f"transcribing {data.name}", len(known) + len(unusable), len(data))
        batch, recordings = [], []
        for utterance in utterances:
            try:
                recordings.append(utterance.samples())
                batch.append(utterance)
            except AudioError as exc:
                if not lenient:
                    raise
                unusable[utterance.id] = str(exc)
        done, encoding_s, decoding_s = _transcribe_batch(ears, batch, recordings, spoken, confidence)
        if journal is not None:
            journal.add(batch, done)
        known |= {transcript.id: transcript for transcript in done}
        encoder_s, decoder_s = encoder_s + encoding_s, decoder_s + decoding_s
        audio_s += sum(transcript.duration_s for transcript in done)
    progress(f"transcribing {data.name}", len(data), len(data))
    return Transcription(
        transcripts=tuple(known[utterance.id] for utterance in data if utterance.id in known),
        encoder_s=encoder_s,
        decoder_s=decoder_s,
        audio_s=audio_s,
        unusable=unusable,
    )


def _batches(utterances: Sequence[Utterance], language: str | None) -> Iterator[tuple[str | None, list[Utterance]]]:
    """Batches of one language each."""
    languages = [utterance.language or language for utterance in utterances]
    for which in batches_by_language(range(len(utterances)), languages, DECODER_BATCH):
        yield languages[which[0]], [utterances[i] for i in which]


def _transcribe_batch(
    ears: Recognizer,
    batch: Sequence[Utterance],
    whole: Sequence[np.ndarray],
    language: str | None,
    confidence: bool,
) -> tuple[list[Transcript], float, float]:
    """Transcripts, and the seconds of encoder and decoder."""
    began = time.perf_counter()
    long = {
        i: found
        for i, samples in enumerate(whole)
        if len(samples) > ears.max_duration_s * SAMPLE_RATE and (found := ears.recognize_long(samples, language)) is not None
    }
    long_s = time.perf_counter() - began
    pieces = [[] if i in long else split_at_silence(samples, ears.max_duration_s) for i, samples in enumerate(whole)]
    flat = [piece for parts in pieces for piece in parts]
    # A recording of hours is many pieces: in batches of their own, so that memory does not grow with its length.
    heard = [
        ears.recognize(flat[first : first + DECODER_BATCH], language, confidence=confidence) for first in range(0, len(flat), DECODER_BATCH)
    ]
    pending, done = iter([recognition for one in heard for recognition in one.recognitions]), []
    for i, (utterance, samples, parts) in enumerate(zip(batch, whole, pieces, strict=True)):
        recognized = [long[i]] if i in long else [next(pending) for _ in parts]
        done.append(
            Transcript(
                id=utterance.id,
                text=" ".join(part.text for part in recognized if part.text),
                tokens=tuple(token for part in recognized for token in part.tokens),
                duration_s=len(samples) / SAMPLE_RATE,
                reference=utterance.text,
                pieces=max(1, len(parts)),
                truncated=not all(part.ended for part in recognized),
                log_probabilities=tuple(p for part in recognized for p in part.log_probabilities),
            )
        )
    return done, sum(one.encoder_s for one in heard), sum(one.decoder_s for one in heard) + long_s
