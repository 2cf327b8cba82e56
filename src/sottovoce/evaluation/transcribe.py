"""A data set to transcripts, batch by batch, by any recognizer."""

from collections.abc import Mapping
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


def transcribe_data(
    recognizer: SpeechModel | Recognizer,
    data: DataSet,
    *,
    language: str | None = None,
    confidence: bool = False,
    context: Context = FULL,
    lenient: bool = False,
    cache: TranscriptCache | None = None,
    progress: Progress = silent,
) -> Transcription:
    """Transcribe every utterance of `data`. `language`: of those that have none of their own; "auto": found by the model for each.

    Long recordings: see `recognize_batches`. `confidence`: also take every token's log-probability. `context`: of the encoder; a
    recording that is longer than a fixed one cannot be used. `lenient`: leave out recordings that
    cannot be used and name them in the result; else they raise `AudioError`. `cache`: what it knows is not transcribed again, and all that
    is transcribed is added to it.
    """
    chosen: Recognizer = TorchRecognizer(recognizer) if isinstance(recognizer, SpeechModel) else recognizer
    context = context.resolve(window_of(chosen), chosen.source)
    known = {u.id: t for u in data if cache is not None and (t := cache.transcript(u)) is not None}
    missing = [utterance for utterance in data if utterance.id not in known]
    unusable = dict[str, str]()

    def leave_out(index: int, reason: AudioError) -> None:
        unusable[missing[index].id] = str(reason)

    batches = recognize_batches(
        chosen,
        [partial(_samples, utterance, context, window_of(chosen)) for utterance in missing],
        [utterance.language or language for utterance in missing],
        DECODER_BATCH,
        confidence=confidence,
        context=context,
        on_unusable=leave_out if lenient else None,
    )
    encoder_s, decoder_s, audio_s = 0.0, 0.0, 0.0
    progress(f"transcribing {data.name}", len(known), len(data))
    for batch in batches:
        done = [transcript_of(missing[recording.index], recording, language) for recording in batch.recordings]
        if cache is not None:
            cache.add([missing[recording.index] for recording in batch.recordings], done)
        known |= {transcript.id: transcript for transcript in done}
        encoder_s, decoder_s = encoder_s + batch.encoder_s, decoder_s + batch.decoder_s
        audio_s += sum(transcript.duration_s for transcript in done)
        progress(f"transcribing {data.name}", len(known) + len(unusable), len(data))
    return Transcription(
        transcripts=tuple(known[utterance.id] for utterance in data if utterance.id in known),
        encoder_s=encoder_s,
        decoder_s=decoder_s,
        audio_s=audio_s,
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
