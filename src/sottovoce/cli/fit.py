"""`sottovoce fit`: the best words in a given size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sottovoce.backends.registry import DEFAULT_TARGET
from sottovoce.cli.options import (
    ANY_BACKEND,
    OUTPUT_FOLDER,
    batch_size_option,
    calibration_weights_option,
    json_option,
    language_option,
    overwrite_option,
    placement_options,
    print_json,
    resume_option,
    sample_seed_option,
    set_threads,
    threads_option,
    usage_errors,
)
from sottovoce.cli.sections import OUTPUT, SectionedCommand

if TYPE_CHECKING:
    from sottovoce.system.devices import Placement

METHOD_NAMES = ("fade", "fade-diagnostic", "qep", "gptq")  # those that go layer by layer; a test compares


@click.command(
    cls=SectionedCommand, sections={"plan_file": OUTPUT}, short_help="Choose a format for every layer so that the file fits a size."
)
@click.argument("model")
@click.argument("out", type=OUTPUT_FOLDER)
@click.option("--max-size", metavar="SIZE", help="Goal: the file may be this large (30MB, 28.5MiB, or bytes).")
@click.option("--max-kl", type=float, metavar="NATS", help="Goal: the smallest file whose KL to MODEL is at most this.")
@click.option(
    "--max-wer-increase",
    type=float,
    metavar="POINTS",
    help="Goal: the smallest file that makes at most this many more errors in 100 words of held-out speech, which needs texts.",
)
@click.option("--target", type=ANY_BACKEND, default=DEFAULT_TARGET, show_default=True, help="Runtime whose file is to fit.")
@click.option("--calibration", metavar="DATA", multiple=True, required=True, help="Speech; no transcripts needed. Repeatable.")
@calibration_weights_option
@click.option("--method", type=click.Choice(METHOD_NAMES), default="fade", show_default=True, help="How codes are found.")
@click.option("--utterances", type=click.IntRange(2), default=128, show_default=True, help="Utterances to calibrate on.")
@click.option(
    "--held-out",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Further utterances, three times as many, of other speakers, to measure on.",
)
@click.option(
    "--swaps",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="How many swaps of formats between two units are tried at the end.",
)
@click.option(
    "--guarded",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    help="Long recordings decoded at the end; a new loop makes the costliest unit of the encoder larger.",
)
@click.option(
    "--baselines",
    is_flag=True,
    help="Also measure other choices of formats in this size: 20 at random, one by hand (8 bits in the encoder), one by the "
    "sensitivities of single layers (slow).",
)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    help="Also write the plan (which layer gets which format) to this JSON file, which quantize --plan reads.",
)
@click.option("--verify/--no-verify", default=True, show_default=True, help="Run the file and compare its words with PyTorch's.")
@sample_seed_option
@batch_size_option
@overwrite_option
@resume_option
@placement_options
@language_option
@threads_option
@json_option
def fit(
    model: str,
    out: Path,
    max_size: str | None,
    max_kl: float | None,
    max_wer_increase: float | None,
    target: str,
    calibration: tuple[str, ...],
    calibration_weights: Literal["hours", "equal"],
    method: str,
    utterances: int,
    held_out: int,
    swaps: int,
    guarded: int,
    baselines: bool,
    plan_file: Path | None,
    verify: bool,
    seed: int,
    batch_size: int,
    overwrite: bool,
    resume: bool,
    language: str | None,
    place: Callable[[], Placement],
    threads: int | None,
    as_json: bool,
) -> None:
    """Choose a format for every layer of MODEL so that the file fits a size and loses least.

    Give one goal: --max-size, --max-kl or --max-wer-increase. It needs recordings by several speakers; only --max-wer-increase needs texts.
    It writes the quantized folder OUT and, where the target has files of its own, the file beside it. A goal that cannot be reached is
    refused. A stopped run goes on with --resume.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage.

    \b
    sottovoce fit openai/whisper-tiny.en tiny-30 --max-size 30MB --target transcribe.cpp --calibration recordings/
    """
    from sottovoce import api
    from sottovoce.api.fitting import fit_goal
    from sottovoce.cli.console import progress_bar
    from sottovoce.cli.display_fit import print_fit
    from sottovoce.quantization.methods import method_named
    from sottovoce.quantization.recipe import Recipe
    from sottovoce.system.plain_data import to_plain

    with usage_errors():
        fit_goal(max_size, max_kl, max_wer_increase)
    set_threads(threads)
    with progress_bar() as progress:
        done = api.fit(
            model,
            out,
            max_size=max_size,
            max_kl=max_kl,
            max_wer_increase=max_wer_increase,
            target=target,
            calibration=calibration,
            recipe=Recipe(method=method_named(method)),
            weighting=calibration_weights,
            utterances=utterances,
            held_out=held_out,
            swaps=swaps,
            guarded=guarded,
            baselines=baselines,
            seed=seed,
            batch_size=batch_size,
            language=language,
            verify=verify,
            save_plan=plan_file,
            overwrite=overwrite,
            resume=resume,
            placement=place(),
            progress=progress,
        )
    if as_json:
        print_json({"folder": str(out), "file": str(done.file), **to_plain(done.record)})
    else:
        print_fit(done.record, str(done.file))
