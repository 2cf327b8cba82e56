"""`sottovoce inspect`, `verify` and `report`: what is in a quantized folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sottovoce.cli.options import json_option, print_json, set_threads


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def inspect(folder: Path, as_json: bool) -> None:
    """Show what is in a quantized FOLDER: formats, sizes, diagnostics of every layer.

    \b
    sottovoce inspect tiny-4bit
    """
    from sottovoce import api
    from sottovoce.cli.display_folder import print_folder
    from sottovoce.system.plain_data import to_plain

    manifest = api.inspect(folder)
    if as_json:
        print_json(to_plain(manifest))
    else:
        print_folder(manifest, folder)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def verify(folder: Path, as_json: bool) -> None:
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


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--transcripts", type=click.Path(path_type=Path), help="Transcripts of the model (evaluate --save).")
@click.option("--against", type=click.Path(path_type=Path), help="Transcripts of the original (evaluate --save-reference).")
@click.option("--html", type=click.Path(path_type=Path), help="The page to write (default: FOLDER.html beside FOLDER).")
def report(folder: Path, transcripts: Path | None, against: Path | None, html: Path | None) -> None:
    """Write one HTML page about a quantized FOLDER, or about the results of a bench.

    \b
    sottovoce report tiny-4bit --transcripts quantized.jsonl --against original.jsonl
    """
    from sottovoce.report.page import write_report

    if against is not None and transcripts is None:
        raise click.UsageError("--against is compared with --transcripts: give both")
    click.echo(f"wrote {write_report(folder, transcripts=transcripts, against=against, html=html)}")
