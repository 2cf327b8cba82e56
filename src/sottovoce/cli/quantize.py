"""`sottovoce quantize` and `sottovoce export`: from a model to a folder, from a folder to another runtime's file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from sottovoce.backends.registry import BACKENDS, DEFAULT_TARGET, exporting_backends
from sottovoce.cli.options import (
    EXPORTING_BACKEND,
    OUTPUT_FOLDER,
    augment_option,
    batch_size_option,
    calibration_weights_option,
    json_option,
    language_option,
    overwrite_option,
    placement_options,
    print_json,
    refuse_with,
    refuse_without,
    resume_option,
    sample_seed_option,
    set_threads,
    threads_option,
    tuned_context_option,
    usage_errors,
)
from sottovoce.cli.recipe_options import RecipeOptions, recipe_from, recipe_options, refuse_with_format, refuse_with_plan
from sottovoce.cli.sections import METHOD, OUTPUT, SPEECH, SectionedCommand
from sottovoce.system.progress import silent

if TYPE_CHECKING:
    from sottovoce.system.devices import Placement

ACTIVATIONS = sorted({choice for backend in BACKENDS.values() for choice in backend.activations}, reverse=True)
EXAMPLES = "\n".join(
    f"    sottovoce export tiny-4bit {name} {backend.file_name.format('tiny-4bit')}" for name, backend in exporting_backends().items()
)


@click.command(cls=SectionedCommand, sections={"context": METHOD}, short_help="Quantize a model to low bits, as a folder.")
@click.argument("model")
@click.argument("out", type=OUTPUT_FOLDER)
@click.option(
    "--calibration",
    metavar="DATA",
    multiple=True,
    help="Speech to calibrate on; no texts needed. Every method except rtn needs it. Repeatable.",
)
@calibration_weights_option
@augment_option
@recipe_options
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    help="Read the format of every layer from this JSON file, which --dry-run --json or fit --plan wrote.",
)
@click.option("--tune", is_flag=True, help="Also tune scales, norms and biases on the calibration speech (see sottovoce tune).")
@tuned_context_option("With --tune: tune for the whole window of the encoder, or for one that stops when the speech does.")
@click.option("--dry-run", is_flag=True, help="Show the plan (which layer gets which format) and stop. With --json: as a file for --plan.")
@click.option(
    "--utterances",
    type=click.IntRange(2),
    default=128,
    show_default=True,
    help="Utterances sampled from the calibration data.",
)
@sample_seed_option
@batch_size_option
@overwrite_option
@resume_option
@click.option(
    "--max-memory",
    metavar="SIZE",
    help="Main memory that each process may take, such as 8GiB: smaller batches and a file for activations keep it below.",
)
@placement_options
@language_option
@threads_option
@json_option
def quantize(
    model: str,
    out: Path,
    calibration: tuple[str, ...],
    calibration_weights: Literal["hours", "equal"],
    augment: bool,
    options: RecipeOptions,
    plan_file: Path | None,
    tune: bool,
    context: Literal["full", "short"],
    dry_run: bool,
    utterances: int,
    seed: int,
    batch_size: int,
    overwrite: bool,
    resume: bool,
    language: str | None,
    max_memory: str | None,
    place: Callable[[], Placement],
    threads: int | None,
    as_json: bool,
) -> None:
    """Quantize MODEL after training, and write the folder OUT.

    It needs some recordings, no texts; --method rtn needs none. The folder has weights, tokenizer, plan and diagnostics; transformers
    loads it if all layers have one format. sottovoce export makes files of other runtimes from it: say which with --target here.

    \b
    sottovoce quantize openai/whisper-tiny.en tiny-4bit --calibration recordings/
    """
    from sottovoce import api
    from sottovoce.api.quantization import check_request, check_settings, checked_plan
    from sottovoce.checkpoint.manifest import read_manifest
    from sottovoce.cli.as_json import quantized_to_dict
    from sottovoce.cli.console import progress_bar
    from sottovoce.cli.display_folder import print_plan, print_quantized
    from sottovoce.cli.display_tune import print_tuned
    from sottovoce.data.augment import Augmentation
    from sottovoce.fitting.size import parse_size
    from sottovoce.quantization.plan_file import read_plan
    from sottovoce.quantization.tune_record import TuneSettings
    from sottovoce.system.plain_data import to_plain
    from sottovoce.system.torchrun import is_leading

    refuse_with_format()
    if plan_file is not None:
        refuse_with_plan()
    if not tune:
        refuse_without("--tune", "context")
    set_threads(threads)
    placement = place()
    with usage_errors():
        recipe = recipe_from(options)
        if not (recipe.method.n_networks or tune):
            refuse_with(
                f"--method {options.method}, which uses no speech", "calibration", "calibration_weights", "augment", "utterances",
                "padding_weight", "frame_subsampling", "joined",
            )  # fmt: skip
        limit = None if max_memory is None else parse_size(max_memory)
        settings = TuneSettings(context=context) if tune else None
        if dry_run:
            check_settings(recipe, placement=placement, max_memory=limit, tune=settings)
        else:
            check_request(
                out,
                recipe=recipe,
                calibration=calibration,
                overwrite=overwrite,
                placement=placement,
                max_memory=limit,
                tune=settings,
            )
    given = None if plan_file is None else read_plan(plan_file)
    with progress_bar() if is_leading() else nullcontext(silent) as progress:
        loaded = api.load(model)
        plan = checked_plan(
            loaded,
            recipe,
            given,
            target=options.target or (given.target if given else DEFAULT_TARGET),
            language=language,
            tune=settings,
        )
        if not as_json and is_leading():
            print_plan(plan, loaded.source)
        if dry_run:
            if as_json and is_leading():
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
            placement=placement,
            max_memory=limit,
            tune=settings,
            progress=progress,
        )
    if not is_leading():
        return
    record = read_manifest(out).tune if tune else None
    if as_json:
        print_json(quantized_to_dict(result, out) | ({} if record is None else {"tune": to_plain(record)}))
        return
    print_quantized(result, out)
    if record is not None:
        print_tuned(record, f"{out}: the tuning")


@click.command(
    cls=SectionedCommand,
    sections=dict.fromkeys(("activations", "page", "original", "library"), OUTPUT) | {"speech": SPEECH},
    short_help="Write a quantized folder as a file of another runtime.",
    help=f"""Write the codes of a quantized FOLDER, bit for bit, as a FILE of another runtime.

    Quantize with --target first: sottovoce quantize MODEL FOLDER --target BACKEND.

    \b
{EXAMPLES}
    """,
)
@click.argument("folder")
@click.argument("backend", type=EXPORTING_BACKEND)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--verify/--no-verify", default=True, show_default=True, help="Run the file and compare its words with PyTorch's.")
@click.option("--speech", metavar="DATA", help="Speech to compare the words on (default: four English sentences in the package).")
@overwrite_option
@click.option(
    "--activations",
    type=click.Choice(ACTIVATIONS),
    help="onnxruntime only: round the inputs of matrix products to 8 bits (int8, faster, default), or do not (float32, PyTorch's words).",
)
@click.option("--page", is_flag=True, help="onnxruntime only: add a page that transcribes in a browser; any static server serves FILE.")
@click.option("--original", metavar="MODEL", help="With --page: export MODEL in floating point too, and let the page run both.")
@click.option(
    "--onnxruntime-web",
    "library",
    type=click.Path(path_type=Path),
    help="With --page: folder of the npm package onnxruntime-web (default: node_modules/onnxruntime-web here or above).",
)
@language_option
@threads_option
@json_option
def export(
    folder: str,
    backend: str,
    file: Path,
    verify: bool,
    speech: str | None,
    overwrite: bool,
    activations: str | None,
    page: bool,
    original: str | None,
    library: Path | None,
    language: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    from sottovoce import api
    from sottovoce.cli.as_json import export_to_dict
    from sottovoce.cli.console import progress_bar
    from sottovoce.cli.display_folder import print_exported

    if not verify:
        refuse_without("--verify", "speech", "language")
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
            page=page,
            original=original,
            library=library,
            progress=progress,
        )
    if as_json:
        print_json(export_to_dict(done))
    else:
        print_exported(done)
