"""A data set to transcripts, batch by batch, by any recogniser."""

import time
from dataclasses import dataclass

from sottovoce.audio import SAMPLE_RATE, split_at_silence
from sottovoce.data import DataSet
from sottovoce.evaluation.recogniser import Heard, Recogniser, TorchRecogniser
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.models.base import SpeechModel
from sottovoce.progress import Progress, silent

DECODER_BATCH = 32  # utterances; each step of the decoder costs little more for 32 than for 8


@dataclass(frozen=True, kw_only=True)
class Transcription:
    """Transcripts in the order of the data, and the wall-clock seconds of encoder (with features) and decoder."""

    transcripts: tuple[Transcript, ...]
    encoder_s: float
    decoder_s: float

    @property
    def audio_s(self) -> float:
        """Seconds of audio transcribed."""
        return sum(transcript.duration_s for transcript in self.transcripts)


def transcribe_data(
    recogniser: SpeechModel | Recogniser,
    data: DataSet,
    *,
    language: str | None = None,
    confidence: bool = False,
    progress: Progress = silent,
) -> Transcription:
    """Transcribe every utterance of `data`.

    Recordings longer than one forward pass go through the model's own long-form procedure, one by one (all of their time
    counts as the decoder's); where there is none, they are cut at silence and joined again. `confidence`: also take every
    token's log-probability, but for long recordings, whose procedure gives none. Raises `AudioError` for a recording that
    cannot be used.
    """
    ears: Recogniser = TorchRecogniser(recogniser) if isinstance(recogniser, SpeechModel) else recogniser
    done, encoder_s, decoder_s = list[Transcript](), 0.0, 0.0
    utterances = list(data)
    for start in range(0, len(utterances), DECODER_BATCH):
        progress(f"transcribing {data.name}", start, len(utterances))
        batch = utterances[start : start + DECODER_BATCH]
        whole = [utterance.samples() for utterance in batch]
        began = time.perf_counter()
        long = {
            i: found
            for i, samples in enumerate(whole)
            if len(samples) > ears.longest_s * SAMPLE_RATE
            and (found := ears.recognise_long(samples, language)) is not None
        }
        decoder_s += time.perf_counter() - began
        pieces = [[] if i in long else split_at_silence(samples, ears.longest_s) for i, samples in enumerate(whole)]
        flat = [piece for parts in pieces for piece in parts]
        heard = (
            ears.recognise(flat, language, confidence=confidence)
            if flat
            else Heard(recognitions=[], encoder_s=0.0, decoder_s=0.0)
        )
        encoder_s, decoder_s = encoder_s + heard.encoder_s, decoder_s + heard.decoder_s
        pending = iter(heard.recognitions)
        for i, (utterance, samples, parts) in enumerate(zip(batch, whole, pieces, strict=True)):
            recognised = [long[i]] if i in long else [next(pending) for _ in parts]
            done.append(
                Transcript(
                    id=utterance.id,
                    text=" ".join(part.text for part in recognised if part.text),
                    tokens=tuple(token for part in recognised for token in part.tokens),
                    duration_s=len(samples) / SAMPLE_RATE,
                    reference=utterance.text,
                    pieces=max(1, len(parts)),
                    truncated=not all(part.ended for part in recognised),
                    log_probabilities=tuple(p for part in recognised for p in part.log_probabilities),
                )
            )
    progress(f"transcribing {data.name}", len(utterances), len(utterances))
    return Transcription(transcripts=tuple(done), encoder_s=encoder_s, decoder_s=decoder_s)
