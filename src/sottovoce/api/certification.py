"""The verbs `certify` and `choose_smallest`: bounds of what quantization did to the words, on speech that nothing was fitted to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from sottovoce.api.certified_file import Calibration, CertifiedFile, check_folds, open_file
from sottovoce.api.certified_speech import CertifiedSpeech, read_speech
from sottovoce.api.inputs import Sources, check_written
from sottovoce.api.opening import open_recognizer
from sottovoce.api.recognition import transcribe_resumably, transcript_cache
from sottovoce.backends.registry import DEFAULT_RUNTIME, backend_named, runtime_of
from sottovoce.data.dataset import Utterance
from sottovoce.errors import DataError, RecipeError
from sottovoce.evaluation.bounds import clopper_pearson_bound
from sottovoce.evaluation.certificate import (
    CERTIFICATE,
    LABELLED,
    LOSSES,
    SHARES,
    Certificate,
    Corpus,
    Loss,
    check_confidence,
    make_statements,
    write_certificate,
)
from sottovoce.evaluation.context import AUTO, FULL, Context, as_context
from sottovoce.evaluation.fallback import Fallback
from sottovoce.evaluation.ledger import add_look, default_ledger, earlier_looks, setting_hash
from sottovoce.evaluation.recognizer import Recognizer, recognizer_digest
from sottovoce.evaluation.transcripts import TRANSCRIPTS, Transcript
from sottovoce.evaluation.word_losses import UtteranceLosses, utterance_losses
from sottovoce.models.load import public_name
from sottovoce.system.counting import counted
from sottovoce.system.devices import Placement
from sottovoce.system.notices import notice
from sottovoce.system.progress import Progress, silent
from sottovoce.system.versions import environment

FEW = 0.05  # a notice says so where no bound of a share of utterances can be below this


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One file of a choice. `certificate`: None if it was not tried, since a larger one had failed; `exceeded`: the limits it fails."""

    checkpoint: str
    bytes: int
    certificate: Certificate | None
    exceeded: tuple[Loss, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidates, largest first, and the smallest that passed: None if the largest failed."""

    candidates: tuple[Candidate, ...]
    chosen: Candidate | None


@dataclass(frozen=True, kw_only=True)
class _Settings:
    against: str
    language: str | None
    fallback: Fallback | None
    confidence: float
    seed: int
    limits: dict[Loss, float]
    placement: Placement

    @property
    def placement_of_reference(self) -> Placement:
        """An exported original computes on the CPU."""
        return Placement() if runtime_of(self.against) else self.placement

    def hash(self, files: Sequence[CertifiedFile], against: str) -> str:
        """Hash all that is decided before the speech is seen; `against`: the digest of the original."""
        return setting_hash(
            {
                "files": [[file.digest, file.runtime, *([] if file.context == FULL else [repr(file.context)])] for file in files],
                "against": against,
                "language": self.language,
                "fallback": repr(self.fallback),
                "confidence": self.confidence,
                "seed": self.seed,
                "limits": self.limits,
                **({} if self.placement.is_plain else {"device": str(self.placement)}),
            }
        )


def certify(
    checkpoint: str | Path,
    audio: Sources,
    *,
    against: str | Path,
    folder: str | Path | None = None,
    runtime: str | None = None,
    language: str | None = None,
    fallback: Fallback | None = None,
    context: str | int | Context = AUTO,
    confidence: float = 0.95,
    seed: int = 0,
    limits: Mapping[Loss, float] | None = None,
    ledger: str | Path | None = None,
    out: str | Path | None = None,
    save: str | Path | None = None,
    save_reference: str | Path | None = None,
    placement: Placement = Placement(),  # noqa: B008 - a frozen value
    progress: Progress = silent,
) -> Certificate:
    """Bound how far the transcripts of `checkpoint` are from those of the model `against`, on speech like `audio`.

    `checkpoint`: a quantized folder, an exported file, or any model; `runtime`: as for `open_recognizer`. `folder`: the quantized folder
    that an exported file comes from, whose manifest tells the calibration speech. Texts of `audio` are not needed; where they are known,
    errors are bounded too. `context`: of the checkpoint's encoder, as for `evaluate`; `against` has the whole window. `limits`: by loss
    (see `evaluation.certificate.LOSSES`), as fractions; `Certificate.exceeded` compares with them. `seed`: of the order of the losses.
    `ledger`: where looks at speech are counted (see `evaluation.ledger`). `out`: write the certificate there as JSON. `save`,
    `save_reference`: write the transcripts there; a stopped run goes on with those it had made, and those of a finished one are read.
    Recordings that cannot be used are left out and named in the result. `placement`: of both models in PyTorch, as for `open_recognizer`.

    Raises `DataError` if no recording can be used, if one comes twice, if one was used to calibrate or to choose the checkpoint, or if a
    limit needs texts and there are none; `RecipeError` for a confidence or limit out of range; `OutputError` for a file that must not be
    replaced.
    """
    settings, asked = _settings(str(against), language, fallback, confidence, seed, limits, placement), as_context(context)
    outputs = [(out, CERTIFICATE), (save, TRANSCRIPTS), (save_reference, TRANSCRIPTS)]
    check_written(outputs, models=[checkpoint, folder, against], data=audio)
    speech = read_speech(audio, labelled=_labelled(settings))
    _name_few(speech, settings)
    file = open_file(checkpoint, folder, runtime, fallback, asked, speech)
    calibration, shared = check_folds(file, speech)
    if save is not None:  # what another run made is refused before any work
        transcript_cache(_opened(file, settings), speech.data, save, language=language, context=file.context)
    originals = _originals([file], speech, settings, ledger, save_reference, progress)
    certificate = _certificate(file, speech, originals, settings, calibration, shared, save, progress)
    if out is not None:
        write_certificate(out, certificate)
    return certificate


def choose_smallest(
    checkpoints: Sequence[str | Path],
    audio: Sources,
    *,
    against: str | Path,
    limits: Mapping[Loss, float],
    runtime: str | None = None,
    language: str | None = None,
    fallback: Fallback | None = None,
    context: str | int | Context = AUTO,
    confidence: float = 0.95,
    seed: int = 0,
    ledger: str | Path | None = None,
    out: str | Path | None = None,
    save_reference: str | Path | None = None,
    placement: Placement = Placement(),  # noqa: B008 - a frozen value
    progress: Progress = silent,
) -> Choice:
    """Choose the smallest of `checkpoints` whose bounds are within all `limits`, and vouch for it with the confidence of one test.

    Fixed-sequence testing: the order, from the largest file to the smallest, is fixed before the speech is seen; each is tested in turn,
    and the first failure ends it. A file that is chosen exceeds a limit with probability `1 - confidence` at most, however many
    candidates there are. Other settings and errors: as for `certify`; `RecipeError` also for no limit or less than two checkpoints.
    """
    settings, asked = _settings(str(against), language, fallback, confidence, seed, limits, placement), as_context(context)
    if len(checkpoints) < 2 or not limits:
        raise RecipeError(f"a choice needs two checkpoints and one limit at least, got {len(checkpoints)} and {len(limits)}")
    check_written([(out, CERTIFICATE), (save_reference, TRANSCRIPTS)], models=[*checkpoints, against], data=audio)
    speech = read_speech(audio, labelled=_labelled(settings))
    _name_few(speech, settings)
    files = [open_file(checkpoint, None, runtime, fallback, asked, speech) for checkpoint in checkpoints]
    folds = {file.name: check_folds(file, speech) for file in files}
    files.sort(key=lambda file: -file.bytes)
    originals = _originals(files, speech, settings, ledger, save_reference, progress)
    candidates, chosen, going_on = list[Candidate](), None, True
    for file in files:
        certificate, exceeded = None, tuple[Loss, ...]()
        if going_on:
            made = _certificate(file, speech, originals, settings, *folds[file.name], None, progress)
            certificate = replace(made, chosen_among=len(files))
            exceeded = certificate.exceeded(limits)
        candidate = Candidate(checkpoint=file.name, bytes=file.bytes, certificate=certificate, exceeded=exceeded)
        candidates.append(candidate)
        going_on = going_on and not exceeded
        chosen = candidate if going_on else chosen
    if out is not None and chosen is not None and chosen.certificate is not None:
        write_certificate(out, chosen.certificate)
    return Choice(candidates=tuple(candidates), chosen=chosen)


class _Originals(NamedTuple):
    """What is known of the original: the looks before this one, its transcripts, and the digest of its weights."""

    looks: int
    transcripts: tuple[Transcript, ...]
    digest: str


def _settings(
    against: str,
    language: str | None,
    fallback: Fallback | None,
    confidence: float,
    seed: int,
    limits: Mapping[Loss, float] | None,
    placement: Placement,
) -> _Settings:
    check_confidence(confidence)
    if seed < 0:
        raise RecipeError(f"a seed of {seed} is out of range; give 0 or more")
    for name, limit in (limits or {}).items():
        if name not in LOSSES or not 0 <= limit < 1:
            raise RecipeError(f"a limit of {limit} for {name!r} makes no sense; wanted 0 to below 1 for one of {', '.join(LOSSES)}")
    return _Settings(
        against=against,
        language=language,
        fallback=fallback,
        confidence=confidence,
        seed=seed,
        limits=dict(limits or {}),
        placement=placement,
    )


def _labelled(settings: _Settings) -> list[Loss]:
    """The limits that cannot be judged without texts."""
    return [loss for loss in LABELLED if loss in settings.limits]


def _name_few(speech: CertifiedSpeech, settings: _Settings) -> None:
    """Say before the work that bounds from few utterances mean little: the best that can come out is known.

    Raises `DataError` for a limit of a share that even this best exceeds.
    """
    count, said = len(speech.data), counted(len(speech.data), "utterance")
    best = clopper_pearson_bound(0, count, 1 - settings.confidence)
    for loss, limit in settings.limits.items():
        if loss in SHARES and limit < best:
            more = f"give {_least_count(limit, settings.confidence)} or more, or a larger limit" if limit else "give a limit above 0"
            raise DataError(
                f"the limit of {100 * limit:.3g} % ({loss}) cannot be shown with {said}: even without a case the bound is "
                f"{100 * best:.3g} %; {more}"
            )
    if best > FEW:
        notice(
            f"{said} bound little: even if nothing changes, the bound is {100 * best:.0f} % of utterances; give "
            f"{_least_count(FEW, settings.confidence)} or more for a bound of {100 * FEW:.0f} %"
        )


def _least_count(share: float, confidence: float) -> int:
    """Return how many utterances without a case bound the share of cases by `share`."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - share))


def _look(ledger: str | Path | None, setting: str, speech: CertifiedSpeech) -> int:
    """Write down that this setting is about to be measured on this speech; return how many others were."""
    file = default_ledger() if ledger is None else Path(ledger).expanduser().absolute()
    recordings = list(speech.hashes.values())
    before = earlier_looks(file, setting, recordings)
    add_look(file, setting, recordings)
    return before


def _originals(
    files: Sequence[CertifiedFile],
    speech: CertifiedSpeech,
    settings: _Settings,
    ledger: str | Path | None,
    save: str | Path | None,
    progress: Progress,
) -> _Originals:
    """Count the earlier looks, and listen to the original. What another run saved is refused before this one is a look."""
    reference = open_recognizer(settings.against, fallback=settings.fallback, placement=settings.placement_of_reference)
    transcript_cache(reference, speech.data, save, language=settings.language, context=FULL)
    digest = recognizer_digest(reference)
    looks = _look(ledger, settings.hash(files, digest), speech)
    return _Originals(looks, _transcripts(reference, speech, settings, FULL, save, progress), digest)


def _transcripts(
    recognizer: Recognizer, speech: CertifiedSpeech, settings: _Settings, context: Context, save: str | Path | None, progress: Progress
) -> tuple[Transcript, ...]:
    """Transcribe everything that could be read before: what cannot be read any more would be missing from the count."""
    made = transcribe_resumably(recognizer, speech.data, save, language=settings.language, context=context, progress=progress)
    for reason in made.unusable.values():
        raise DataError(f"a recording changed while it was measured ({reason}); start again")
    return made.transcripts


def _certificate(
    file: CertifiedFile,
    speech: CertifiedSpeech,
    originals: _Originals,
    settings: _Settings,
    calibration: Calibration,
    shared: tuple[str, ...],
    save: str | Path | None,
    progress: Progress,
) -> Certificate:
    recognizer = _opened(file, settings)
    transcripts = _transcripts(recognizer, speech, settings, file.context, save, progress)
    losses = utterance_losses(transcripts, originals.transcripts, settings.language)
    places = {utterance.id: number for number, (_, own) in enumerate(speech.corpora) for utterance in own}
    # Speakers of two corpora may have one name.
    speakers = [None if u.speaker is None else f"{places[u.id]}:{u.speaker}" for u in speech.data]
    by_id = {loss.id: loss for loss in losses}
    packages = ("jiwer", "whisper-normalizer", *backend_named(file.runtime).packages)
    return Certificate(
        checkpoint=public_name(file.name),
        digest=file.digest,
        bytes=file.bytes,
        runtime=file.runtime if _placement(file, settings).is_plain else f"{file.runtime} ({settings.placement})",
        context=str(file.context),
        reference=public_name(settings.against),
        confidence=settings.confidence,
        seed=settings.seed,
        statements=make_statements(losses, speakers, confidence=settings.confidence, seed=settings.seed),
        corpora=tuple(_corpus(name, own, by_id, speech.seconds) for name, own in speech.corpora),
        languages=tuple(sorted({str(t.language) for t in originals.transcripts})),
        decodings=tuple(sorted({t.decoding for t in (*transcripts, *originals.transcripts)})),
        speech=hashlib.sha256("".join(sorted(speech.hashes.values())).encode()).hexdigest()[:32],
        calibration=calibration,
        shared_speakers=shared,
        earlier_looks=originals.looks,
        environment=environment() | {name: version(name) for name in packages},
        left_out=speech.left_out,
        limits=settings.limits or None,
        reference_digest=originals.digest,
    )


def _opened(file: CertifiedFile, settings: _Settings) -> Recognizer:
    runtime = None if runtime_of(file.path) else file.runtime
    return open_recognizer(file.path, runtime, fallback=settings.fallback, placement=_placement(file, settings))


def _placement(file: CertifiedFile, settings: _Settings) -> Placement:
    return settings.placement if file.runtime == DEFAULT_RUNTIME else Placement()


def _corpus(name: str, utterances: Sequence[Utterance], losses: Mapping[str, UtteranceLosses], seconds: Mapping[str, float]) -> Corpus:
    own = [losses[utterance.id] for utterance in utterances]
    return Corpus(
        name=name,
        utterances=len(utterances),
        seconds=round(sum(seconds[utterance.id] for utterance in utterances), 3),
        speakers=len({utterance.speaker for utterance in utterances if utterance.speaker is not None}),
        unnamed=sum(utterance.speaker is None for utterance in utterances),
        changed=sum(loss.changed for loss in own) / len(own),
        disagreement=sum(loss.disagreement for loss in own) / len(own),
    )
