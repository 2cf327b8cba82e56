"""`sottovoce tune`: scales, norms and biases of a quantized folder against its original."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from sottovoce.cli.options import (
    OUTPUT_FOLDER,
    SEED,
    augment_option,
    calibration_weights_option,
    device_option,
    json_option,
    language_option,
    overwrite_option,
    print_json,
    resume_option,
    set_threads,
    threads_option,
    tuned_context_option,
    usage_errors,
)
from sottovoce.cli.sections import METHOD, SectionedCommand


@click.command(cls=SectionedCommand, sections={"context": METHOD}, short_help="Move scales and norms towards the original, codes kept.")
@click.argument("checkpoint")
@click.argument("out", type=OUTPUT_FOLDER)
@click.option("--calibration", metavar="DATA", multiple=True, required=True, help="Speech; no transcripts needed. Repeatable.")
@calibration_weights_option
@augment_option
@click.option("--against", metavar="MODEL", help="The original, which CHECKPOINT is to follow (default: the model that CHECKPOINT names).")
@tuned_context_option("What the encoder is tuned for: its whole window, or one that stops when the speech does (Whisper only).")
@click.option("--utterances", type=click.IntRange(2), default=192, show_default=True, help="Utterances to train on.")
@click.option(
    "--held-out",
    type=click.IntRange(2),
    default=48,
    show_default=True,
    help="Further utterances, by other speakers, that progress is checked on.",
)
@click.option("--steps", type=click.IntRange(1), help="Steps of 4 utterances (default: 128, or 288 for short contexts).")
@click.option("--rate", type=float, help="Largest relative step of a scale (default: by the bits, 2e-3 at 2 to 2e-4 at 4).")
@click.option(
    "--float-rate", type=float, help="Largest relative step of norms, biases, positions (default: 1e-3; 5e-4 at 4 bits and full contexts)."
)
@click.option(
    "--look-every",
    type=click.IntRange(1),
    help="Steps between two checks on held-out speech, called looks in the output (default: six looks).",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the sample, the order and the sampled transcripts.")
@overwrite_option
@resume_option
@language_option
@device_option
@threads_option
@json_option
def tune(
    checkpoint: str,
    out: Path,
    calibration: tuple[str, ...],
    calibration_weights: Literal["hours", "equal"],
    augment: bool,
    against: str | None,
    context: Literal["full", "short"],
    utterances: int,
    held_out: int,
    steps: int | None,
    rate: float | None,
    float_rate: float | None,
    look_every: int | None,
    seed: int,
    overwrite: bool,
    resume: bool,
    language: str | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Bring the quantized folder CHECKPOINT nearer to its original by training, and write the folder OUT.

    Scales, norms, biases and tables of positions move; codes stay. It needs recordings by several speakers, no texts, and the original
    model. Every some steps it checks the divergence on held-out speech, and it keeps the best state; if no state is better than the start,
    OUT computes what CHECKPOINT does. A stopped run goes on with --resume.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage.

    \b
    sottovoce tune tiny-4bit tiny-4bit-tuned --calibration recordings/
    sottovoce tune tiny-4bit tiny-4bit-short --calibration recordings/ --context short
    """
    from sottovoce import api
    from sottovoce.cli.console import progress_bar
    from sottovoce.cli.display_tune import print_tuned
    from sottovoce.data.augment import Augmentation
    from sottovoce.quantization.tune_record import TuneSettings
    from sottovoce.system.devices import find_placement
    from sottovoce.system.plain_data import to_plain

    set_threads(threads)
    with usage_errors():
        settings = TuneSettings(steps=steps, rate=rate, float_rate=float_rate, context=context, look_every=look_every)
    with progress_bar() as progress:
        done = api.tune(
            checkpoint,
            out,
            calibration=calibration,
            against=against,
            settings=settings,
            weighting=calibration_weights,
            augmentation=Augmentation() if augment else None,
            utterances=utterances,
            held_out=held_out,
            seed=seed,
            language=language,
            overwrite=overwrite,
            resume=resume,
            placement=find_placement(device),
            progress=progress,
        )
    if as_json:
        print_json({"folder": str(out), **to_plain(done.record)})
    else:
        print_tuned(done.record, str(out))
