"""`sottovoce quantize` and `sottovoce export`: from a model to a folder, from a folder to another runtime's file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from sottovoce.backends.registry import BACKENDS, DEFAULT_TARGET, exporting_backends
from sottovoce.cli.options import (
    EXPORTING_BACKEND,
    json_option,
    language_option,
    overwrite_option,
    print_json,
    set_threads,
    threads_option,
)
from sottovoce.cli.recipe_options import RecipeOptions, recipe_from, recipe_options, refuse_with_format, refuse_with_plan

ACTIVATIONS = sorted({choice for backend in BACKENDS.values() for choice in backend.activations}, reverse=True)
EXAMPLES = "\n".join(
    f"    sottovoce export tiny-4bit {name} {backend.file_name.format('tiny-4bit')}" for name, backend in exporting_backends().items()
)


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--calibration",
    metavar="DATA",
    multiple=True,
    help="Speech to calibrate on; no transcripts needed. Every method but rtn wants it. Repeatable.",
)
@click.option(
    "--calibration-weights",
    type=click.Choice(["hours", "equal"]),
    default="hours",
    show_default=True,
    help="Utterances of several data sets: by their hours of speech, or as many of each.",
)
@click.option("--augment", is_flag=True, help="Vary the calibration speech: short, cut and joined clips, a little noise; seeded.")
@recipe_options
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="JSON file of the format of every layer (see --dry-run).")
@click.option("--dry-run", is_flag=True, help="Show the plan and stop; with --json print it, to be edited and given with --plan.")
@click.option(
    "--utterances",
    type=click.IntRange(2),
    default=128,
    show_default=True,
    help="Utterances sampled from the calibration data.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Utterances per forward pass.")
@overwrite_option
@click.option("--resume", is_flag=True, help="Go on where the same command was stopped.")
@language_option
@threads_option
@json_option
@click.pass_context
def quantize(
    ctx: click.Context,
    model: str,
    out: Path,
    calibration: tuple[str, ...],
    calibration_weights: Literal["hours", "equal"],
    augment: bool,
    options: RecipeOptions,
    plan_file: Path | None,
    dry_run: bool,
    utterances: int,
    seed: int,
    batch_size: int,
    overwrite: bool,
    resume: bool,
    language: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Quantize MODEL and write a folder OUT that transformers loads.

    \b
    sottovoce quantize openai/whisper-tiny.en tiny-4bit --calibration recordings/
    """
    from sottovoce import api
    from sottovoce.cli.as_json import quantized_to_dict
    from sottovoce.cli.console import progress_bar
    from sottovoce.cli.display_folder import print_plan, print_quantized
    from sottovoce.data.augment import Augmentation
    from sottovoce.quantization.plan_file import read_plan
    from sottovoce.system.plain_data import to_plain

    refuse_with_format(ctx)
    if plan_file is not None:
        refuse_with_plan(ctx)
    set_threads(threads)
    recipe = recipe_from(options)
    given = None if plan_file is None else read_plan(plan_file)
    with progress_bar() as progress:
        loaded = api.load(model)
        plan = given or api.make_plan(loaded, recipe, target=options.target or DEFAULT_TARGET)
        if not as_json:
            print_plan(plan, loaded.source)
        if dry_run:
            if as_json:
                print_json(to_plain(plan))
            return
        result = api.quantize(
            loaded,
            out,
            recipe=recipe,
            plan=plan,
            calibration=calibration,
            weighting=calibration_weights,
            augmentation=Augmentation() if augment else None,
            utterances=utterances,
            seed=seed,
            batch_size=batch_size,
            language=language,
            overwrite=overwrite,
            resume=resume,
            target=options.target,
            progress=progress,
        )
    if as_json:
        print_json(quantized_to_dict(result, out))
    else:
        print_quantized(result, out)


@click.command(
    help=f"""Write the codes of a quantized FOLDER, bit for bit, as a FILE of another runtime.

    \b
{EXAMPLES}
    """
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("backend", type=EXPORTING_BACKEND)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--verify/--no-verify", default=True, show_default=True, help="Run the file and compare its words with PyTorch's.")
@click.option("--speech", metavar="DATA", help="Speech to compare on (default: four English sentences that come along).")
@overwrite_option
@click.option(
    "--activations",
    type=click.Choice(ACTIVATIONS),
    help="onnxruntime only: round inputs of matrix products to 8 bits (int8, fast, the default), or not (float32, words as in PyTorch).",
)
@language_option
@threads_option
@json_option
def export(
    folder: Path,
    backend: str,
    file: Path,
    verify: bool,
    speech: str | None,
    overwrite: bool,
    activations: str | None,
    language: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    from sottovoce import api
    from sottovoce.cli.as_json import export_to_dict
    from sottovoce.cli.console import progress_bar
    from sottovoce.cli.display_folder import print_exported

    set_threads(threads)
    with progress_bar() as progress:
        done = api.export(
            folder,
            backend,
            file,
            verify=verify,
            speech=speech,
            overwrite=overwrite,
            language=language,
            activations=activations,
            progress=progress,
        )
    if as_json:
        print_json(export_to_dict(done))
    else:
        print_exported(done)
