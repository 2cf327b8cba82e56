"""Recordings to words, in batches, greedily, with the model's own prompt and suppression rules."""

import time
from dataclasses import dataclass

import torch

from sottovoce.audio import SAMPLE_RATE, split_at_silence
from sottovoce.data import DataSet
from sottovoce.evaluate.divergence import hidden_states, token_log_probabilities
from sottovoce.evaluate.transcripts import Transcript
from sottovoce.models.base import SpeechModel
from sottovoce.progress import Progress, silent

ENCODER_BATCH = 8  # utterances; more does not make the encoder faster on a CPU
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


@torch.no_grad()
def transcribe_data(
    model: SpeechModel,
    data: DataSet,
    *,
    language: str | None = None,
    confidence: bool = False,
    progress: Progress = silent,
) -> Transcription:
    """Transcribe every utterance of `data`.

    Recordings longer than one forward pass go through the model's own long-form procedure, one by one (all of their time
    counts as the decoder's); where the model has none, they are cut at silence and joined again. `confidence`: also take every
    token's log-probability, but for long recordings, whose procedure gives none. Raises `AudioError` for a recording that
    cannot be used.
    """
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
            if len(samples) > model.longest_s * SAMPLE_RATE
            and (found := model.decode_long(samples, language)) is not None
        }
        decoder_s += time.perf_counter() - began
        pieces = [[] if i in long else split_at_silence(samples, model.longest_s) for i, samples in enumerate(whole)]
        flat = [piece for parts in pieces for piece in parts]
        began = time.perf_counter()
        encoded = [
            model.encode(model.features(flat[i : i + ENCODER_BATCH])) for i in range(0, len(flat), ENCODER_BATCH)
        ]
        between = time.perf_counter()
        decoded = model.decode_to_end(torch.cat(encoded), language) if encoded else []
        probabilities = iter(
            _probabilities(model, torch.cat(encoded), decoded, language) if encoded and confidence else ()
        )
        tokens = iter(decoded)
        encoder_s, decoder_s = encoder_s + between - began, decoder_s + time.perf_counter() - between
        for i, (utterance, samples, parts) in enumerate(zip(batch, whole, pieces, strict=True)):
            heard, ended = zip(*([long[i]] if i in long else [next(tokens) for _ in parts]), strict=True)
            done.append(
                Transcript(
                    id=utterance.id,
                    text=" ".join(filter(None, map(model.text, heard))),
                    tokens=tuple(token for row in heard for token in row),
                    duration_s=len(samples) / SAMPLE_RATE,
                    reference=utterance.text,
                    pieces=max(1, len(parts)),
                    truncated=not all(ended),
                    log_probabilities=tuple(p for _ in parts for p in next(probabilities)) if confidence else (),
                )
            )
    progress(f"transcribing {data.name}", len(utterances), len(utterances))
    return Transcription(transcripts=tuple(done), encoder_s=encoder_s, decoder_s=decoder_s)


def _probabilities(
    model: SpeechModel, encoded: torch.Tensor, decoded: list[tuple[list[int], bool]], language: str | None
) -> list[list[float]]:
    """Log-probability of each token of each transcript, by one more pass of the decoder."""
    transcripts = [tokens for tokens, _ in decoded]
    states = hidden_states(model, encoded, transcripts, language)
    return [
        token_log_probabilities(model, state, tokens).clamp(max=0).tolist()
        for state, tokens in zip(states, transcripts, strict=True)
    ]
