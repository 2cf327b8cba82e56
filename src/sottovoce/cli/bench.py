"""`sottovoce bench` and `sottovoce demo`: many measurements, and one that runs at once."""

from __future__ import annotations

from pathlib import Path

import click

from sottovoce.cli.options import ANY_BACKEND, WithRay, json_option, print_json, ray_option, refuse_with, set_threads
from sottovoce.cli.recipe_options import WIDTHS
from sottovoce.cli.sections import DECODING, DEVICE, OUTPUT, SPEECH
from sottovoce.system.counting import counted


@click.command(
    cls=WithRay,
    sections={"data": SPEECH, "runtimes": DECODING, "jobs": DEVICE, "tables_only": OUTPUT},
    short_help="Compare methods, formats and samples, as a recipe says.",
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of results. A stopped bench continues there.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of the recipe's data sets (default: the recipe's own folder).",
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Number of processes.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each process (default: all cores, shared).")
@click.option("--tables-only", is_flag=True, help="Only make tables and figures from existing results.")
@click.option(
    "--runtime",
    "runtimes",
    type=ANY_BACKEND,
    multiple=True,
    help="Runtime that transcribes (default: as in the recipe, else torch). Repeatable.",
)
@ray_option
def bench(
    recipe: Path,
    out: Path,
    data: Path | None,
    jobs: int,
    threads: int | None,
    tables_only: bool,
    runtimes: tuple[str, ...],
    ray: str | None,
) -> None:
    """Measure models, methods, formats and seeds on data sets, as RECIPE says, a TOML file (docs/measuring.md lists its settings).

    Every cell, one quantized model on one data set, is computed once and stored. Start the command again after a stop. Writes results.md,
    results.csv and figures.

    \b
    sottovoce bench benchmarks/recipes/tiny.en.toml --data speech/ --out results/
    """
    from sottovoce.bench import read_plan, run_bench, unmeasured, write_summary
    from sottovoce.cli.console import progress_bar

    if tables_only:
        refuse_with("--tables-only", "data", "jobs", "threads", "runtimes", "ray")
    plan = read_plan(recipe, runtimes=list(runtimes)) if runtimes else read_plan(recipe)
    failed = False
    if tables_only:
        summary = write_summary(out)
        if missing := unmeasured(plan, summary.results.evaluations):
            click.echo(f"note: not measured yet: {counted(missing, 'evaluation')} of this recipe; go on without --tables-only", err=True)
    else:
        set_threads(None)
        with progress_bar() as progress:
            outcome = run_bench(plan, out, data=data or recipe.parent, jobs=jobs, threads=threads, ray=ray, progress=progress)
        click.echo(f"{counted(len(outcome.computed), 'cell')} computed, {len(outcome.found)} found finished", err=True)
        for cell in outcome.failed:
            click.echo(f"failed: {cell.name}: {cell.error}", err=True)
        summary, failed = outcome.summary, bool(outcome.failed)
    click.echo(summary.markdown)
    for file in summary.figures:
        click.echo(f"wrote {file}", err=True)
    for note in summary.notes:
        click.echo(f"note: {note}", err=True)
    if failed:
        raise SystemExit(1)


@click.command(short_help="Quantize a bundled Whisper on bundled speech, offline.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for speech and models.",
)
@click.option("--bits", type=click.Choice(WIDTHS), default="3", show_default=True, help="Bits per weight.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads; the figures depend on it.")
@json_option
def demo(out: Path, bits: str, threads: int, as_json: bool) -> None:
    """Quantize a bundled Whisper with bundled speech, offline, and show what it did to the words.

    \b
    sottovoce demo
    """
    from sottovoce.demo.repeatable import choose_kernels

    choose_kernels()
    from sottovoce.cli.as_json import demo_to_dict
    from sottovoce.cli.console import progress_bar
    from sottovoce.cli.display_demo import print_demo, print_next
    from sottovoce.demo.run import FADE, FLOAT, run_demo
    from sottovoce.errors import MissingDependencyError
    from sottovoce.report.page import write_report

    set_threads(threads)
    with progress_bar() as progress:
        result = run_demo(out, bits=int(bits), progress=progress)
    try:
        page = write_report(result.folder, transcripts=result.transcripts[FADE], against=result.transcripts[FLOAT])
    except MissingDependencyError as exc:
        click.echo(f"note: there is no HTML report ({exc})", err=True)
        page = None
    if as_json:
        print_json(demo_to_dict(result))
    else:
        print_demo(result)
        print_next(result, page)
