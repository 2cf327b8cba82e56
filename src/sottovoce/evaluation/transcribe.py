"""A data set to transcripts, batch by batch, by any recognizer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from sottovoce.data.dataset import DataSet, Utterance
from sottovoce.errors import AudioError
from sottovoce.evaluation.context import FULL, Context, EncoderWindow
from sottovoce.evaluation.normalize import scoring_language
from sottovoce.evaluation.recognize import RecognizedRecording, recognize_batches
from sottovoce.evaluation.recognizer import Recognizer, TorchRecognizer, window_of
from sottovoce.evaluation.transcript_cache import TranscriptCache
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.models.batching import batches_by_language
from sottovoce.models.languages import DETECT
from sottovoce.models.speech_model import SpeechModel
from sottovoce.system.progress import Progress, silent

DECODER_BATCH = 32  # utterances; each step of the decoder costs little more for 32 than for 8


@dataclass(frozen=True, kw_only=True)
class Transcription:
    """Transcripts in the order of the data, and the wall-clock seconds of encoder (with features) and decoder.

    `audio_s`: seconds of audio that took that time: those of transcripts made earlier are not in it. `unusable`: the other recordings by
    id, each with the reason.
    """

    transcripts: tuple[Transcript, ...]
    encoder_s: float
    decoder_s: float
    audio_s: float
    unusable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How utterances are transcribed; see `transcribe_data`. `context`: as `Context.resolve` returned it for the recognizer."""

    language: str | None
    confidence: bool
    context: Context
    lenient: bool


@dataclass(frozen=True, kw_only=True)
class TranscribedBatch:
    """The transcripts of one batch, the seconds that they took, and the recordings that could not be used."""

    transcripts: tuple[Transcript, ...]
    encoder_s: float
    decoder_s: float
    unusable: Mapping[str, str]


Elsewhere = Callable[[BatchSettings, Sequence[Sequence[Utterance]]], Iterable[TranscribedBatch]]
"""Transcribes batches on other machines; they may come back in any order."""


def transcribe_data(
    recognizer: SpeechModel | Recognizer,
    data: DataSet,
    *,
    language: str | None = None,
    confidence: bool = False,
    context: Context = FULL,
    lenient: bool = False,
    cache: TranscriptCache | None = None,
    elsewhere: Elsewhere | None = None,
    progress: Progress = silent,
) -> Transcription:
    """Transcribe every utterance of `data`. `language`: of those that have none of their own; "auto": found by the model for each.

    Long recordings: see `recognize_batches`. `confidence`: also take every token's log-probability. `context`: of the encoder; a
    recording that is longer than a fixed one cannot be used. `lenient`: leave out recordings that
    cannot be used and name them in the result; else they raise `AudioError`. `cache`: what it knows is not transcribed again, and all that
    is transcribed is added to it. `elsewhere`: who transcribes the batches, which are the same; here if None.
    """
    chosen: Recognizer = TorchRecognizer(recognizer) if isinstance(recognizer, SpeechModel) else recognizer
    settings = BatchSettings(
        language=language, confidence=confidence, context=context.resolve(window_of(chosen), chosen.source), lenient=lenient
    )
    known = {u.id: t for u in data if cache is not None and (t := cache.transcript(u)) is not None}
    missing = [utterance for utterance in data if utterance.id not in known]
    languages = [utterance.language or language for utterance in missing]
    batches = [[missing[i] for i in rows] for rows in batches_by_language(range(len(missing)), languages, DECODER_BATCH)]
    unusable = dict[str, str]()
    encoder_s, decoder_s, audio_s = 0.0, 0.0, 0.0
    progress(f"transcribing {data.name}", len(known), len(data))
    by_id = {utterance.id: utterance for utterance in missing}
    here = (transcribe_batch(chosen, settings, batch) for batch in batches)
    for done in here if elsewhere is None else elsewhere(settings, batches):
        if cache is not None:
            cache.add([by_id[transcript.id] for transcript in done.transcripts], done.transcripts)
        known |= {transcript.id: transcript for transcript in done.transcripts}
        unusable |= done.unusable
        encoder_s, decoder_s = encoder_s + done.encoder_s, decoder_s + done.decoder_s
        audio_s += sum(transcript.duration_s for transcript in done.transcripts)
        progress(f"transcribing {data.name}", len(known) + len(unusable), len(data))
    return Transcription(
        transcripts=tuple(known[utterance.id] for utterance in data if utterance.id in known),
        encoder_s=encoder_s,
        decoder_s=decoder_s,
        audio_s=audio_s,
        unusable={utterance.id: unusable[utterance.id] for utterance in missing if utterance.id in unusable},
    )


def transcribe_batch(recognizer: Recognizer, settings: BatchSettings, utterances: Sequence[Utterance]) -> TranscribedBatch:
    """Transcribe utterances of one language together. Raises `AudioError` for one that cannot be used, unless `settings` are lenient."""
    unusable = dict[str, str]()

    def leave_out(index: int, reason: AudioError) -> None:
        unusable[utterances[index].id] = str(reason)

    batches = list(
        recognize_batches(
            recognizer,
            [partial(_samples, utterance, settings.context, window_of(recognizer)) for utterance in utterances],
            [utterance.language or settings.language for utterance in utterances],
            DECODER_BATCH,
            confidence=settings.confidence,
            context=settings.context,
            on_unusable=leave_out if settings.lenient else None,
        )
    )
    return TranscribedBatch(
        transcripts=tuple(
            transcript_of(utterances[recording.index], recording, settings.language) for batch in batches for recording in batch.recordings
        ),
        encoder_s=sum(batch.encoder_s for batch in batches),
        decoder_s=sum(batch.decoder_s for batch in batches),
        unusable=unusable,
    )


def _samples(utterance: Utterance, context: Context, window: EncoderWindow) -> np.ndarray:
    """Read a recording. Raises `AudioError`, also where the context is shorter than it is."""
    samples = utterance.samples()
    try:
        context.of(len(samples), window)
    except AudioError as exc:
        raise AudioError(f"{utterance.id}: {exc}") from exc
    return samples


def transcript_of(utterance: Utterance, recording: RecognizedRecording, language: str | None) -> Transcript:
    """Make the transcript of an utterance from its recognition; `language`: the one asked for, if it has none of its own."""
    recognition = recording.recognition
    named = None if language == DETECT else language
    return Transcript(
        id=utterance.id,
        text=recognition.text,
        tokens=recognition.tokens,
        duration_s=recording.duration_s,
        reference=utterance.text,
        pieces=recording.pieces,
        truncated=not recognition.ended,
        log_probabilities=recognition.log_probabilities,
        language=scoring_language(utterance.language or recognition.language or named),
        decoding=recognition.decoding,
        temperature=recognition.temperature,
        context=recording.context,
    )
