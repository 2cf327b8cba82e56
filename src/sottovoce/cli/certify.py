"""`sottovoce certify`: what quantization did to the words, with a bound that holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sottovoce.cli.options import (
    NOT_GOOD_ENOUGH,
    SEED,
    check_context,
    context_option,
    fallback_option,
    finish,
    json_option,
    language_option,
    placement_options,
    print_json,
    runtime_option,
    save_option,
    set_threads,
    threads_option,
    usage_errors,
)
from sottovoce.cli.sections import GOAL, SectionedCommand

if TYPE_CHECKING:
    from sottovoce.evaluation.certificate import Certificate
    from sottovoce.system.devices import Placement

LIMITS = {
    "max_changed": ("changed", "% of utterances with another transcript"),
    "max_disagreement": ("disagreement", "words of 100 that differ from the original's, on average over utterances"),
    "max_looped": ("looped", "% of utterances that loop where the original's do not"),
    "max_empty": ("empty", "% of utterances that come out empty where the original's do not"),
    "max_worse": ("worse", "% of utterances with more errors than the original's (needs texts)"),
    "max_wer_increase": ("wer_increase", "points by which the error rate of an utterance rises on average (needs texts)"),
}


def limit_options(command: Any) -> Any:
    """Add an option for the limit of each loss."""
    for name, (_, about) in reversed(LIMITS.items()):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, type=click.FloatRange(0, 100, max_open=True), help=f"Limit: {about}.")(command)
    return command


@click.command(
    cls=SectionedCommand,
    sections=dict.fromkeys((*LIMITS, "seed"), GOAL),
    short_help="Bound how much quantization changes transcripts.",
)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option("--against", required=True, metavar="MODEL", help="The original: the model whose transcripts CHECKPOINT's are compared with.")
@click.option(
    "--audio",
    "audio",
    required=True,
    multiple=True,
    metavar="DATA",
    help="Speech that had no part in making CHECKPOINT; no texts needed. Repeatable.",
)
@click.option("--choose", is_flag=True, help="Of several checkpoints, choose the smallest that is within the limits.")
@limit_options
@click.option(
    "--confidence",
    type=float,
    default=0.95,
    show_default=True,
    help="Confidence level of each bound by itself (not of words): 0.95 is 95 %.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the order in which losses are taken.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="The quantized folder that an exported CHECKPOINT comes from; it names the speech that is refused here.",
)
@click.option("--store", is_flag=True, help="Keep the certificate in the quantized folder, its model card and its report.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the certificate to this file as JSON.")
@click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    help="File that counts the settings measured on the same speech, called looks (default: in ~/.local/state).",
)
@save_option
@click.option("--save-reference", type=click.Path(path_type=Path), help="Write the transcripts of the original to this file.")
@runtime_option
@placement_options
@language_option
@fallback_option
@context_option
@threads_option
@json_option
def certify(
    checkpoints: tuple[str, ...],
    against: str,
    audio: tuple[str, ...],
    choose: bool,
    confidence: float,
    seed: int,
    folder: Path | None,
    store: bool,
    out: Path | None,
    ledger: Path | None,
    save: Path | None,
    save_reference: Path | None,
    runtime: str | None,
    language: str | None,
    place: Callable[[], Placement],
    fallback: bool,
    context: str,
    threads: int | None,
    as_json: bool,
    **limits: float | None,
) -> None:
    """Bound, with a stated confidence, how far the transcripts of CHECKPOINT are from the original's on speech like DATA.

    CHECKPOINT is a quantized folder or an exported file. It needs the original, and speech that was not calibrated, tuned or chosen on;
    texts are not needed, but with them it also bounds added errors. It prints the bounds; --out and --store keep them. With --choose it
    goes from the largest of several checkpoints to the smallest, stops at the first that exceeds a limit, and takes the one before.

    Exit codes: 0 done, 1 refused, failed, or some recordings could not be used, 2 wrong usage, 3 a limit is exceeded.

    \b
    sottovoce certify tiny-4bit --against openai/whisper-tiny.en --audio held-out/ --runtime transcribe.cpp
    sottovoce certify --choose 8bit 4bit 3bit --max-disagreement 2 --against openai/whisper-tiny.en --audio held-out/
    """
    from sottovoce.api import certification
    from sottovoce.cli.console import progress_bar
    from sottovoce.cli.display_certificate import print_certificate, print_choice
    from sottovoce.evaluation.certificate import check_confidence
    from sottovoce.evaluation.fallback import Fallback
    from sottovoce.system.plain_data import to_plain

    wanted = {LIMITS[name][0]: value / 100 for name, value in limits.items() if value is not None}
    _check_usage(checkpoints, choose, wanted, folder, save)
    check_context(context)
    with usage_errors():
        check_confidence(confidence)
    home = folder or Path(checkpoints[0])
    if store and not choose:
        _check_folder(home)
    set_threads(threads)
    settings: dict[str, Any] = {
        "against": against,
        "runtime": runtime,
        "language": language,
        "fallback": Fallback() if fallback else None,
        "context": context,
        "confidence": confidence,
        "seed": seed,
        "limits": wanted,
        "ledger": ledger,
        "out": out,
        "save_reference": save_reference,
        "placement": place(),
    }
    with progress_bar() as progress:
        if choose:
            for checkpoint in checkpoints if store else ():
                _check_folder(Path(checkpoint))
            choice = certification.choose_smallest(checkpoints, audio, **settings, progress=progress)
            certificate = choice.chosen.certificate if choice.chosen else None
            home = Path(choice.chosen.checkpoint) if choice.chosen else home
        else:
            certificate = certification.certify(checkpoints[0], audio, folder=folder, save=save, **settings, progress=progress)
    if as_json:
        print_json(to_plain(choice if choose else certificate))
    elif choose:
        print_choice(choice)
    elif certificate is not None:
        print_certificate(certificate)
    if certificate is not None:  # after the figures are shown: a folder may not be writable
        _keep(certificate, audio if choose else (), home if store else None)
    _finish(certificate)


def _check_usage(checkpoints: tuple[str, ...], choose: bool, limits: dict[str, float], folder: Path | None, save: Path | None) -> None:
    if choose and (len(checkpoints) < 2 or not limits):
        raise click.UsageError("--choose needs two checkpoints at least, and a limit such as --max-disagreement 2")
    if not choose and len(checkpoints) > 1:
        raise click.UsageError("one checkpoint has one certificate; to choose from several, give --choose and a limit")
    if choose and (folder is not None or save is not None):
        raise click.UsageError("--folder and --save go with one checkpoint, not with --choose")
    if any(math.isnan(limit) for limit in limits.values()):
        raise click.UsageError("a limit is nan; give a number from 0 to below 100")


def _check_folder(folder: Path) -> None:
    """Refuse --store before any work where there is nowhere to store."""
    from sottovoce.checkpoint.manifest import read_manifest

    read_manifest(folder)


def _keep(certificate: Certificate, chosen_by: tuple[str, ...], folder: Path | None) -> None:
    """Store a certificate in its folder, where that is asked for; `chosen_by`: the speech by which it was chosen."""
    from sottovoce.api.certified_speech import recording_hashes
    from sottovoce.checkpoint.certificates import store_certificate

    if folder is not None:
        store_certificate(folder, certificate, chosen_on=recording_hashes(chosen_by) if chosen_by else ())


def _finish(certificate: Certificate | None) -> None:
    """Exit with 3 if no checkpoint passed or a limit is exceeded, with 1 if a recording could not be used."""
    if certificate is None:
        click.echo("none of the checkpoints is within the limits: the largest exceeds one already", err=True)
        raise SystemExit(NOT_GOOD_ENOUGH)
    exceeded = certificate.exceeded(certificate.limits or {})
    if exceeded:
        names = ", ".join(f"--{option.replace('_', '-')}" for option, (loss, _) in LIMITS.items() if loss in exceeded)
        click.echo(f"exceeded: {names}", err=True)
    finish(certificate.left_out.values(), certificate.utterances, "the certificate is of the others", passed=not exceeded)
