"""Calibration speech: recordings that can be used, and what is said in them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from sottovoce.data.audio import SAMPLE_RATE, recording_hash, split_at_silence
from sottovoce.data.augment import Augmentation, augment
from sottovoce.data.dataset import DataSet, Share
from sottovoce.data.usable import read_usable
from sottovoce.errors import CalibrationError
from sottovoce.evaluation.recognize import recognize_batches
from sottovoce.evaluation.recognizer import TorchRecognizer
from sottovoce.models.batching import batches_by_language
from sottovoce.models.languages import DETECT
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.run_state import RunState
from sottovoce.system.counting import counted
from sottovoce.system.progress import Progress, silent
from sottovoce.system.ranks import ALONE, Ranks

LABEL_BATCH = 16  # utterances transcribed at once


@dataclass(frozen=True, kw_only=True)
class CalibrationSpeech:
    """Prepared calibration speech: 16 kHz recordings, the model's own transcripts of them as token ids, and how they came about.

    `cut`: ids of recordings that were cut at silence because they were longer than one forward pass takes. `left_out`: ids of recordings
    that could not be used, each with the reason. `shares`: what came from each data set, if there are several. `augmentation`: how the
    recordings were varied. `hashes`: of the recordings as they were read, before they were varied or cut (see `recording_hash`);
    `named_speakers`: theirs, as far as they are known.
    """

    ids: tuple[str, ...]
    recordings: tuple[np.ndarray, ...]
    transcripts: tuple[tuple[int, ...], ...]
    languages: tuple[str | None, ...]
    speakers: tuple[str | None, ...]
    cut: tuple[str, ...]
    seconds: float
    label_time_s: float
    left_out: Mapping[str, str] = field(default_factory=dict)
    shares: tuple[Share, ...] = ()
    augmentation: Augmentation | None = None
    hashes: tuple[str, ...] = ()
    named_speakers: tuple[str, ...] = ()


def prepare_speech(
    model: SpeechModel,
    data: DataSet,
    *,
    language: str | None = None,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    state: RunState | None = None,
    ranks: Ranks = ALONE,
    least: int = 2,
    progress: Progress = silent,
) -> CalibrationSpeech:
    """Read the recordings, cut long ones, and transcribe each with `model`.

    Known texts are not used: a corpus has its own capitals and punctuation, and the decoder is to see the tokens that it writes itself.
    `language`: of recordings that have none of their own; "auto": the model detects it. `augmentation`: vary the recordings by `seed`.
    Transcripts that `state` has are not made again; those that are made are added to it at once. `ranks`: share out the work, batch by
    batch; `state` is that of rank 0. Recordings that cannot be used are left out and named. Raises `CalibrationError` if fewer than
    `least` remain: settings of layers are chosen on one half and tried on another, a fold that is only measured on needs one.
    """
    usable = read_usable(data)
    hashes = tuple(recording_hash(samples) for samples in usable.samples)
    named_speakers = tuple(sorted({utterance.speaker for utterance in usable.utterances if utterance.speaker is not None}))
    if augmentation is not None:
        usable = augment(usable, augmentation, seed)
    ids, recordings, speakers, languages, cut = [], [], [], list[str | None](), []
    for utterance, samples in zip(usable.utterances, usable.samples, strict=True):
        pieces = split_at_silence(samples, model.max_duration_s)
        if len(pieces) > 1:
            cut.append(utterance.id)
        for i, piece in enumerate(pieces):
            ids.append(utterance.id if len(pieces) == 1 else f"{utterance.id}#{i}")
            recordings.append(piece)
            languages.append(utterance.language or language)
            speakers.append(utterance.speaker or (utterance.id if len(pieces) > 1 else None))
    if len(recordings) < least:
        reasons = "".join(f"; {reason}" for reason in usable.left_out.values())
        wanted = "one is needed" if least == 1 else f"at least {least} are needed, better a hundred"
        raise CalibrationError(f"{data.name}: {counted(len(recordings), 'usable recording')}; {wanted}{reasons}")
    started = time.perf_counter()
    transcripts = _transcribe(model, ids, recordings, languages, state=state or RunState(), ranks=ranks, progress=progress)
    return CalibrationSpeech(
        ids=tuple(ids),
        recordings=tuple(recordings),
        transcripts=tuple(transcripts),
        languages=tuple(languages),
        speakers=tuple(speakers),
        cut=tuple(cut),
        seconds=sum(map(len, recordings)) / SAMPLE_RATE,
        label_time_s=time.perf_counter() - started,
        left_out=usable.left_out,
        shares=data.shares,
        augmentation=augmentation,
        hashes=hashes,
        named_speakers=named_speakers,
    )


def _transcribe(
    model: SpeechModel,
    ids: Sequence[str],
    recordings: Sequence[np.ndarray],
    languages: list[str | None],
    *,
    state: RunState,
    ranks: Ranks,
    progress: Progress,
) -> list[tuple[int, ...]]:
    """Return the tokens of each recording. Languages that are to be detected are put into `languages`."""
    known: dict[str, Sequence[int]] = ranks.exchange(state.transcripts() if ranks.leads else {})[0]
    transcripts = [tuple(known.get(name, ())) for name in ids]
    unknown = {i for i, name in enumerate(ids) if name not in known}
    # A language that is to be found out is not in `state`.
    heard = [i for i in range(len(ids)) if i in unknown or languages[i] == DETECT]
    recognizer = TorchRecognizer(model, encoder_batch=LABEL_BATCH)
    batches = list(batches_by_language(range(len(heard)), [languages[i] for i in heard], LABEL_BATCH))
    done = 0
    if heard:
        progress("transcribing calibration speech", done, len(heard))
    for first in range(0, len(batches), ranks.size):
        own = [heard[k] for k in batches[first + ranks.rank]] if first + ranks.rank < len(batches) else []
        for part in ranks.exchange(_recognize(recognizer, own, recordings, languages)):
            made = dict[str, tuple[int, ...]]()
            for i, tokens, found_language in part:
                languages[i] = found_language
                if i in unknown:
                    made[ids[i]] = transcripts[i] = tuple(tokens)
            state.add_transcripts(made)
            done += len(part)
        progress("transcribing calibration speech", done, len(heard))
    return transcripts


def _recognize(
    recognizer: TorchRecognizer, which: Sequence[int], recordings: Sequence[np.ndarray], languages: Sequence[str | None]
) -> list[tuple[int, list[int], str | None]]:
    """Return number, tokens and language of each recording of one batch."""
    heard = [partial(np.asarray, recordings[i]) for i in which]
    return [
        (which[recording.index], list(recording.recognition.tokens), recording.recognition.language)
        for batch in recognize_batches(recognizer, heard, [languages[i] for i in which], LABEL_BATCH)
        for recording in batch.recordings
    ]
