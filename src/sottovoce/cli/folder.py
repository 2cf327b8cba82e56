"""`sottovoce inspect`, `verify` and `report`: what is in a quantized folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sottovoce.cli.options import (
    json_option,
    print_json,
    refuse_without,
    set_threads,
    transcript_language_option,
)


@click.command(short_help="Show what is in a quantized folder.")
@click.argument("folder")  # as text: a path that is not there must not pass for a name on the Hub
@click.option("--errors", metavar="DATA", help="Speech. Show how the errors of all layers add up on it, in place of the folder's content.")
@click.option("--against", metavar="MODEL", help="With --errors: the original model (default: what the folder was quantized from).")
@click.option("--utterances", type=click.IntRange(1), default=16, show_default=True, help="With --errors: utterances of DATA.")
@click.option("--alone", is_flag=True, help="With --errors: each layer on its own, in place of one after the other.")
@click.option("--language", help="With --errors: language of recordings without one of their own, or auto to detect it (default: en).")
@click.option("--threads", type=click.IntRange(1), help="With --errors: CPU threads (default: all cores).")
@json_option
def inspect(
    folder: str,
    errors: str | None,
    against: str | None,
    utterances: int,
    alone: bool,
    language: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Show what is in a quantized FOLDER: formats, sizes, diagnostics of every layer; or how their errors add up.

    \b
    sottovoce inspect tiny-4bit
    sottovoce inspect tiny-4bit --errors recordings/
    """
    from sottovoce import api
    from sottovoce.cli.console import progress_bar
    from sottovoce.cli.display_errors import print_errors
    from sottovoce.cli.display_folder import print_folder
    from sottovoce.evaluation.error_statistics import error_table
    from sottovoce.system.plain_data import to_plain

    if errors is None:
        refuse_without("--errors", "against", "alone", "utterances", "language", "threads")
        manifest = api.inspect(folder)
        if as_json:
            print_json(to_plain(manifest))
        else:
            print_folder(manifest, folder)
        return
    set_threads(threads)
    parts = {layer.name: layer.part for layer in api.inspect(folder).plan.layers}
    with progress_bar() as progress:
        found = api.inspect_errors(folder, errors, against=against, limit=utterances, alone=alone, language=language, progress=progress)
    if as_json:
        print_json(to_plain(error_table(found, parts)))
    else:
        print_errors(found, parts, folder)


@click.command(short_help="Check a quantized folder against its checksums and plan.")
@click.argument("folder")  # as text: a path that is not there must not pass for a name on the Hub
@json_option
def verify(folder: str, as_json: bool) -> None:
    """Check a quantized FOLDER again: every file's checksum, and that codes, plan and description agree.

    \b
    sottovoce verify tiny-4bit
    """
    from sottovoce import api
    from sottovoce.cli.display_folder import print_verified

    set_threads(None)
    checked = api.verify(folder)
    if as_json:
        print_json(asdict(checked))
    else:
        print_verified(checked, folder)


@click.command(short_help="Write one HTML page about a quantized folder or a bench.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--transcripts", type=click.Path(path_type=Path), help="File with transcripts of the quantized model (evaluate --save).")
@click.option("--against", type=click.Path(path_type=Path), help="File with transcripts of the original (evaluate --save-reference).")
@click.option(
    "--errors",
    type=click.Path(path_type=Path),
    help="File with what `inspect FOLDER --errors DATA --json` printed, for a heat map of how errors add up.",
)
@transcript_language_option
@click.option("--html", type=click.Path(path_type=Path), help="The page to write (default: FOLDER.html beside FOLDER).")
def report(
    folder: Path, transcripts: Path | None, against: Path | None, errors: Path | None, language: str | None, html: Path | None
) -> None:
    """Write one HTML page about a quantized FOLDER, or about the results of a bench.

    \b
    sottovoce report tiny-4bit --transcripts quantized.jsonl --against original.jsonl
    """
    from sottovoce.report.page import write_report

    if against is not None and transcripts is None:
        raise click.UsageError("--against is compared with --transcripts: give both")
    if transcripts is None:
        refuse_without("--transcripts", "language")
    page = write_report(folder, transcripts=transcripts, against=against, errors=errors, language=language, html=html)
    click.echo(f"wrote {page}")
