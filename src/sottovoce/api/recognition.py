"""The verbs that recognize speech: `transcribe`, `evaluate`, `score`, `fit_confidence`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from sottovoce.api.inputs import Sources, check_written, limited, loaded
from sottovoce.api.opening import Opening
from sottovoce.api.remote import transcribe_on
from sottovoce.backends.registry import BACKENDS, DEFAULT_RUNTIME, runtime_of
from sottovoce.data.dataset import DataSet, need_texts
from sottovoce.data.folds import assign_folds
from sottovoce.data.load import load_sources
from sottovoce.errors import DataError, RecipeError
from sottovoce.evaluation.confidence import FittedConfidence, fit_to_transcripts
from sottovoce.evaluation.context import AUTO, FULL, Context, as_context
from sottovoce.evaluation.fallback import Fallback
from sottovoce.evaluation.recognizer import Recognizer, TorchRecognizer, decoding_settings, recognizer_digest, window_of
from sottovoce.evaluation.transcribe import Elsewhere, Transcription, transcribe_data
from sottovoce.evaluation.transcript_cache import TranscriptCache
from sottovoce.evaluation.transcripts import TRANSCRIPTS, read_transcripts
from sottovoce.evaluation.wer import Score, score_pair
from sottovoce.models.speech_model import SpeechModel
from sottovoce.system.cluster import Cluster, joined_cluster
from sottovoce.system.devices import Placement
from sottovoce.system.memory import peak_memory_bytes
from sottovoce.system.notices import notice
from sottovoce.system.progress import Progress, silent
from sottovoce.system.versions import environment


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Score and timing of a model on a data set; `reference`: the same of the model it was compared with, scored as in `score_pair`.

    `model_bytes`: the weights on disk, or as float16 would be where they lie elsewhere; `peak_memory_bytes`: of the whole process.
    `context`: of the encoder.
    """

    score: Score
    transcription: Transcription
    model_bytes: int
    peak_memory_bytes: int
    reference: Evaluation | None = None
    context: Context = FULL

    @property
    def rtfx(self) -> float:
        """Seconds of audio transcribed per second of work."""
        seconds = self.transcription.encoder_s + self.transcription.decoder_s
        return self.transcription.audio_s / seconds if seconds else 0.0


def evaluate(
    model: str | Path | SpeechModel | Recognizer,
    data: str | Path | DataSet,
    *,
    against: str | Path | SpeechModel | Recognizer | None = None,
    limit: int | None = None,
    runtime: str | None = None,
    language: str | None = None,
    fallback: Fallback | None = None,
    tokens_per_second: float | None = None,
    context: str | int | Context = AUTO,
    save: str | Path | None = None,
    save_reference: str | Path | None = None,
    placement: Placement = Placement(),  # noqa: B008 - a frozen value
    ray: str | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measure the error rate of `model` on `data` (its first `limit` utterances), and compare it with `against` by utterance.

    `runtime`: what runs `model` (see `open_recognizer`); `against` runs in PyTorch unless it is an exported file. `language`: of utterances
    that have none of their own; scoring follows it (see `evaluation.normalize`). `fallback`, `tokens_per_second`: of both models, as for
    `open_recognizer`. `context`: of the encoder of `model`, "auto", "full", a number of positions or a margin "+16" (see
    `evaluation.context.Context`); `against` has the whole window. `save`, `save_reference`: write the transcripts of the two there; a
    stopped run goes on with those it had made, and those of a finished one are read. Recordings that cannot be used are left out and named
    in the result. `placement`: of both models, as for `open_recognizer`. `ray`: the address of a Ray cluster whose workers transcribe, or
    "local" for one on this machine; the models are then named, not loaded.
    Raises `DataError` if none can be scored, or if `against` recognizes no word; `OutputError` for a file that must not be replaced.
    """
    asked = as_context(context)
    check_written([(save, TRANSCRIPTS), (save_reference, TRANSCRIPTS)], models=[model, against], data=data)
    data = limited(data, limit)
    need_texts(data, "an error rate", "without texts, `sottovoce transcribe` writes the words and `sottovoce certify` compares two models")
    reference, again = None, model
    how = Opening(runtime=runtime, fallback=fallback, tokens_per_second=tokens_per_second, placement=placement)
    with joined_cluster(ray, gpus=int(placement.device.type == "cuda")) as cluster:
        elsewhere = _elsewhere(cluster, model, how)
        if against is not None:
            # Opened before the reference transcribes, so that what is wrong is said at once; and again, so that one is in memory at a time.
            recognizer = _recognizer(model, how)
            chosen = asked.resolve(window_of(recognizer), recognizer.source)
            transcript_cache(recognizer, data, save, language=language, context=chosen)
            if isinstance(model, str | Path) and runtime_of(recognizer.source):
                again, how = recognizer.source, replace(how, runtime=None)  # as it was exported
            del recognizer
            reference = evaluate(
                against,
                data,
                language=language,
                fallback=fallback,
                tokens_per_second=tokens_per_second,
                context=FULL,
                save=save_reference,
                placement=placement,
                ray=ray,
                progress=progress,
            )
        recognizer = _recognizer(again, how)
        if reference is None:
            chosen = asked.resolve(window_of(recognizer), recognizer.source)
        transcription = transcribe_resumably(
            recognizer, data, save, language=language, context=chosen, elsewhere=elsewhere, progress=progress
        )
    if transcription.unusable and not transcription.transcripts:
        raise DataError(f"{data.name}: none of its recordings can be used; the first: {next(iter(transcription.unusable.values()))}")
    ours, theirs = score_pair(transcription.transcripts, reference.transcription.transcripts if reference else None, language=language)
    return Evaluation(
        score=ours,
        transcription=transcription,
        model_bytes=recognizer.stored_bytes,
        peak_memory_bytes=peak_memory_bytes(),
        reference=replace(reference, score=theirs) if reference and theirs else None,
        context=chosen,
    )


def score(transcripts: str | Path, *, against: str | Path | None = None, language: str | None = None) -> tuple[Score, Score | None]:
    """Score a transcript file, and that of the original it is compared with. No model is needed.

    `language`: of transcripts that name none. The original is scored in the languages of `transcripts`. Raises `DataError` as
    `score_transcripts` does.
    """
    reference = None if against is None else read_transcripts(against)
    return score_pair(read_transcripts(transcripts), reference, language=language)


def fit_confidence(
    model: str | Path | SpeechModel,
    data: str | Path | DataSet,
    *,
    limit: int | None = None,
    seed: int = 0,
    language: str | None = None,
    placement: Placement = Placement(),  # noqa: B008 - a frozen value
    progress: Progress = silent,
) -> FittedConfidence:
    """Fit temperature and Platt scaling of word confidences on one half of `data` (with texts) and measure them on the other.

    The halves share no speaker where speakers are known. Use speech the model was not calibrated on. Recordings that cannot be used are
    left out, counted and named in notices. `placement`: as for `open_recognizer`. Raises `DataError` if there are too few words to fit
    or to judge.
    """
    data = limited(data, limit)
    need_texts(data, "a fit of confidences", "without texts there are raw confidences: `sottovoce transcribe --json --confidence raw`")
    model = loaded(model).placed(placement)
    known = data.sample(None, seed).utterances
    known = tuple(utterance for utterance in known if utterance.text)
    recognizer = TorchRecognizer(model)
    transcription = transcribe_data(
        recognizer, DataSet(data.name, known), language=language, confidence=True, lenient=True, progress=progress
    )
    for reason in transcription.unusable.values():
        notice(f"{reason}; it is left out")
    speakers = [utterance.speaker for utterance in known if utterance.id not in transcription.unusable]
    fitted = fit_to_transcripts(recognizer, transcription.transcripts, assign_folds(speakers))
    return replace(fitted, unusable=len(transcription.unusable))


def transcribe(
    model: str | Path | SpeechModel | Recognizer,
    audio: Sources,
    *,
    confidence: bool = False,
    runtime: str | None = None,
    language: str | None = None,
    fallback: Fallback | None = None,
    tokens_per_second: float | None = None,
    context: str | int | Context = AUTO,
    save: str | Path | None = None,
    placement: Placement = Placement(),  # noqa: B008 - a frozen value
    ray: str | None = None,
    progress: Progress = silent,
) -> Transcription:
    """Transcribe a sound file, a folder of them or a data set, or several of these, in their order.

    `confidence`: with the log-probability of each token (see `word_confidences`). `fallback`, `tokens_per_second`, `placement`: as for
    `open_recognizer`.
    `context`: of the encoder, "auto", "full", a number of positions or a margin "+16" (see `evaluation.context.Context`). `save`: write
    the transcripts there; a stopped run goes on with those it had made, and those of a finished one are read. Recordings that cannot be
    used are left out and named in the result. `ray`: as for `evaluate`. Raises `OutputError` for a file that must not be replaced.
    """
    asked = as_context(context)
    check_written([(save, TRANSCRIPTS)], models=[model], data=audio)
    data = load_sources([audio] if isinstance(audio, str | Path | DataSet) else audio)
    how = Opening(runtime=runtime, fallback=fallback, tokens_per_second=tokens_per_second, placement=placement)
    with joined_cluster(ray, gpus=int(placement.device.type == "cuda")) as cluster:
        recognizer = _recognizer(model, how)
        chosen = asked.resolve(window_of(recognizer), recognizer.source)
        elsewhere = _elsewhere(cluster, model, how)
        return transcribe_resumably(
            recognizer,
            data,
            save,
            language=language,
            confidence=confidence,
            context=chosen,
            elsewhere=elsewhere,
            progress=progress,
        )


def transcribe_resumably(
    recognizer: Recognizer,
    data: DataSet,
    save: str | Path | None,
    *,
    language: str | None,
    confidence: bool = False,
    context: Context = FULL,
    elsewhere: Elsewhere | None = None,
    progress: Progress,
) -> Transcription:
    """Transcribe what can be transcribed of `data`; keep it in the file `save` as it is made, so that nothing is transcribed twice."""
    cache = transcript_cache(recognizer, data, save, language=language, confidence=confidence, context=context)
    transcription = transcribe_data(
        recognizer,
        data,
        language=language,
        confidence=confidence,
        context=context,
        lenient=True,
        cache=cache,
        elsewhere=elsewhere,
        progress=progress,
    )
    if cache is not None:
        cache.finish(transcription.transcripts)
    return transcription


def transcript_cache(
    recognizer: Recognizer, data: DataSet, save: str | Path | None, *, language: str | None, confidence: bool = False, context: Context
) -> TranscriptCache | None:
    """Return what is known already of the transcripts for the file `save`; None: nothing is saved. Raises `OutputError`, as that does."""
    if save is None:
        return None
    backend = BACKENDS[runtime_of(recognizer.source) or DEFAULT_RUNTIME]
    inputs = {
        "model": recognizer_digest(recognizer),
        "runtime": type(recognizer).__name__,
        "language": language,
        "confidence": confidence,
        "context": repr(context),
        "versions": environment() | {name: version(name) for name in backend.packages},
        **decoding_settings(recognizer),
    }
    return TranscriptCache(save, inputs, [utterance.id for utterance in data])


def _recognizer(model: str | Path | SpeechModel | Recognizer, how: Opening) -> Recognizer:
    if isinstance(model, str | Path | SpeechModel):
        return how.of(model)
    if how != Opening():
        raise RecipeError(
            "a recognizer decodes as it was opened, where it was opened; give runtime, fallback, tokens_per_second and placement to "
            "open_recognizer, or the model here"
        )
    return model


def _elsewhere(cluster: Cluster | None, model: str | Path | SpeechModel | Recognizer, how: Opening) -> Elsewhere | None:
    """Return what transcribes on a cluster, or None: there is none. Raises `RecipeError` for a model that its workers cannot load."""
    if cluster is None:
        return None
    if not isinstance(model, str | Path):
        raise RecipeError("workers of a cluster load the model themselves; give its name or folder, not a loaded model")
    name = str(Path(model).expanduser().absolute()) if Path(model).expanduser().exists() else str(model)
    if how.placement.device.type == "cuda":  # the one that Ray reserves for a task is its first
        how = replace(how, placement=replace(how.placement, device=torch.device("cuda", 0)))
    return partial(transcribe_on, cluster, name, how)
