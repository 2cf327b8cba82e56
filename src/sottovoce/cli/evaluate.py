"""`sottovoce evaluate`, `score`, `transcribe` and `confidence`: recordings and words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sottovoce.cli.options import (
    FAILED,
    NOT_GOOD_ENOUGH,
    SEED,
    WithRay,
    check_context,
    context_option,
    fallback_option,
    fallback_seed_option,
    finish_transcription,
    json_option,
    language_option,
    placement_options,
    print_json,
    ray_option,
    refuse_without,
    runtime_option,
    save_option,
    set_threads,
    threads_option,
    tokens_option,
    transcript_language_option,
)
from sottovoce.cli.sections import DECODING, SectionedCommand

if TYPE_CHECKING:
    from sottovoce.evaluation.wer import Score
    from sottovoce.system.devices import Placement

gate_option = click.option("--gate", is_flag=True, help="Exit with 3 if failures are added to those of the original (--against).")
tolerance_option = click.option(
    "--tolerance",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="With --gate: how many added failures of each kind are accepted: loops, empty texts, words on silence, truncations.",
)


@click.command(cls=WithRay, sections={"seed": DECODING}, short_help="Count the word errors of a model on speech with texts.")
@click.argument("model")
@click.argument("data")
@click.option("--against", metavar="MODEL", help="The original: the model that MODEL is compared with, utterance by utterance.")
@click.option("--save-reference", type=click.Path(path_type=Path), help="Write the transcripts of the original to this file.")
@click.option("--limit", type=click.IntRange(1), help="Number of utterances, from the first (default: all).")
@save_option
@gate_option
@tolerance_option
@runtime_option
@ray_option
@placement_options
@language_option
@fallback_option
@fallback_seed_option
@tokens_option
@context_option
@threads_option
@json_option
def evaluate(
    model: str,
    data: str,
    against: str | None,
    limit: int | None,
    save: Path | None,
    save_reference: Path | None,
    gate: bool,
    tolerance: int,
    runtime: str | None,
    ray: str | None,
    language: str | None,
    place: Callable[[], Placement],
    fallback: bool,
    seed: int,
    tokens_per_second: float | None,
    context: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the word error rate of MODEL on DATA (the character error rate, for languages without spaces).

    DATA needs reference texts: what was said in each recording. A manifest has them, and so have LibriSpeech, TED-LIUM, SPGISpeech and most
    data sets of the Hub. With --against, a second model, called the original, recognizes the same recordings, and the two are compared.

    \b
    sottovoce evaluate tiny-4bit test.jsonl --against openai/whisper-tiny.en
    """
    from sottovoce import api
    from sottovoce.cli.as_json import evaluation_to_dict
    from sottovoce.cli.console import progress_bar
    from sottovoce.cli.display_scores import print_evaluation

    _check_gate(gate, against)
    if not fallback:
        refuse_without("--fallback", "seed")
    check_context(context)
    if save_reference is not None and against is None:
        raise click.UsageError("--save-reference writes the transcripts of the original: name it with --against MODEL")
    set_threads(threads)
    with progress_bar() as progress:
        result = api.evaluate(
            model,
            data,
            against=against,
            limit=limit,
            runtime=runtime,
            language=language,
            fallback=api.Fallback(seed=seed) if fallback else None,
            tokens_per_second=tokens_per_second,
            context=context,
            save=save,
            save_reference=save_reference,
            placement=place(),
            ray=ray,
            progress=progress,
        )
    content = evaluation_to_dict(result) if as_json else None
    if not as_json:
        print_evaluation(result)
    passed = _judge(content, result.score, result.reference.score if result.reference else None, gate, tolerance)
    finish_transcription(result.transcription, passed=passed)


@click.command(cls=SectionedCommand, short_help="Score saved transcripts again, without a model.")
@click.argument("transcripts", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Transcripts of the original (evaluate --save-reference), to compare with.",
)
@transcript_language_option
@gate_option
@tolerance_option
@json_option
def score(transcripts: Path, against: Path | None, language: str | None, gate: bool, tolerance: int, as_json: bool) -> None:
    """Score a file of TRANSCRIPTS that `evaluate --save` wrote; no model is needed.

    \b
    sottovoce score tiny-4bit.jsonl --against tiny.jsonl --gate
    """
    from sottovoce import api
    from sottovoce.cli.display_scores import print_scores
    from sottovoce.evaluation.wer import score_to_dict

    _check_gate(gate, against)
    ours, reference = api.score(transcripts, against=against, language=language)
    content = {**score_to_dict(ours), "reference": score_to_dict(reference) if reference else None} if as_json else None
    if not as_json:
        print_scores(ours, reference)
    if not _judge(content, ours, reference, gate, tolerance):
        raise SystemExit(NOT_GOOD_ENOUGH)


@click.command(cls=WithRay, sections={"seed": DECODING, "confidence": DECODING}, short_help="Print the words spoken in recordings.")
@click.argument("model")
@click.argument("audio", nargs=-1, required=True)
@save_option
@click.option(
    "--confidence",
    type=click.Choice(["raw", "temperature", "platt"]),
    help="With --json: show how sure the model is of every word, raw or scaled as fitted by `sottovoce confidence --store`.",
)
@runtime_option
@ray_option
@placement_options
@language_option
@fallback_option
@fallback_seed_option
@tokens_option
@context_option
@threads_option
@json_option
def transcribe(
    model: str,
    audio: tuple[str, ...],
    save: Path | None,
    confidence: str | None,
    runtime: str | None,
    ray: str | None,
    language: str | None,
    place: Callable[[], Placement],
    fallback: bool,
    seed: int,
    tokens_per_second: float | None,
    context: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Print the words spoken in sound files, or in folders and manifests of them.

    \b
    sottovoce transcribe tiny-4bit interview.flac
    """
    from sottovoce import api
    from sottovoce.api.inputs import check_written
    from sottovoce.cli.as_json import stored_scaling, words
    from sottovoce.cli.console import progress_bar
    from sottovoce.evaluation.recognizer import WordlessRecognizer
    from sottovoce.evaluation.transcripts import TRANSCRIPTS

    if confidence and not as_json:
        raise click.UsageError("--confidence goes with --json")
    if not fallback:
        refuse_without("--fallback", "seed")
    check_context(context)
    set_threads(threads)
    opening: dict[str, Any] = {
        "runtime": runtime,
        "fallback": api.Fallback(seed=seed) if fallback else None,
        "tokens_per_second": tokens_per_second,
        "placement": place(),
    }
    recognizer = scaling = None
    if confidence:  # the words are split by the recognizer, afterwards
        check_written([(save, TRANSCRIPTS)], models=[model], data=audio)
        scaling = stored_scaling(model, confidence)
        recognizer = api.open_recognizer(model, **opening)
        if isinstance(recognizer, WordlessRecognizer):
            recognizer.refuse_words()
    with progress_bar() as progress:
        how: dict[str, Any] = {"confidence": confidence is not None, "language": language, "context": context, "save": save}
        if ray or recognizer is None:
            result = api.transcribe(model, audio, **opening, **how, ray=ray, progress=progress)
        else:
            result = api.transcribe(recognizer, audio, **how, progress=progress)
    transcripts = result.transcripts
    if as_json:
        rows: list[dict[str, Any]] = [
            {"audio": t.id, "text": t.text, "duration_s": round(t.duration_s, 3), "context": t.context} for t in transcripts
        ]
        if scaling is not None and recognizer is not None:
            rows = [row | {"words": words(recognizer, t, scaling)} for row, t in zip(rows, transcripts, strict=True)]
        print_json(rows)
    else:
        for transcript in transcripts:
            click.echo(transcript.text if len(transcripts) == 1 else f"{transcript.id}\t{transcript.text}")
    finish_transcription(result)


@click.command(cls=SectionedCommand, short_help="Measure and fit how sure the model is of its words.")
@click.argument("model")
@click.argument("data")
@click.option("--store", is_flag=True, help="Write the fitted scalings to MODEL (a folder written by sottovoce).")
@click.option("--limit", type=click.IntRange(2), help="Number of utterances, from the first (default: all).")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the division into halves.")
@placement_options
@language_option
@threads_option
@json_option
def confidence(
    model: str,
    data: str,
    store: bool,
    limit: int | None,
    seed: int,
    language: str | None,
    place: Callable[[], Placement],
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how reliable word confidences of MODEL are on DATA, and fit scalings that calibrate them.

    DATA needs reference texts. The scalings are fitted on one half of it and measured on the other. Use other speech than for calibration.

    \b
    sottovoce confidence tiny-4bit held-out.jsonl --store
    """
    from sottovoce import api
    from sottovoce.checkpoint.manifest import ConfidenceRecord, read_manifest, store_confidence
    from sottovoce.cli.console import progress_bar
    from sottovoce.cli.display_scores import print_confidence
    from sottovoce.system.plain_data import to_plain

    if store:
        read_manifest(model)  # refused before any work
    set_threads(threads)
    with progress_bar() as progress:
        fitted = api.fit_confidence(model, data, limit=limit, seed=seed, language=language, placement=place(), progress=progress)
    if as_json:
        print_json(to_plain(fitted))
    else:
        print_confidence(fitted)
    if store:  # after the figures are shown: a folder may not be writable
        store_confidence(model, ConfidenceRecord(fitted=fitted, data=data, seed=seed))
    if fitted.unusable:
        raise SystemExit(FAILED)


def _check_gate(gate: bool, against: object) -> None:
    if not gate:
        refuse_without("--gate", "tolerance")
    if gate and against is None:
        raise click.UsageError("--gate compares with the original: give it with --against")


def _judge(content: dict[str, Any] | None, score: Score, reference: Score | None, gate_asked: bool, tolerance: int) -> bool:
    """Print the JSON, if any, and with `--gate` the verdict. Return whether the gate is open, or was not asked for."""
    from sottovoce.cli.as_json import gate_to_dict
    from sottovoce.cli.display_scores import print_gate
    from sottovoce.evaluation.gate import gate

    verdict = gate(score, reference, tolerance=tolerance) if gate_asked and reference else None
    if content is not None:
        print_json(content | ({"gate": gate_to_dict(verdict)} if verdict else {}))
    elif verdict:
        print_gate(verdict)
    return verdict is None or verdict.open
