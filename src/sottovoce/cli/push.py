"""`sottovoce push`: a quantized folder or an export to the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sottovoce.cli.options import json_option, print_json, set_threads, usage_errors
from sottovoce.system.counting import counted


@click.command(short_help="Upload a quantized folder or an exported file to the Hub.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--public", is_flag=True, help="Make the repository public (default: private).")
@json_option
def push(folder: Path, repo: str, public: bool, as_json: bool) -> None:
    """Upload a quantized FOLDER, or an exported file or folder, to the model repository REPO (OWNER/NAME) on the Hugging Face Hub.

    It needs a token: that of `hf auth login`, or HF_TOKEN. It makes the repository if it is not there, private unless --public is given,
    and asks nothing. A FOLDER that `sottovoce verify` refuses is not uploaded, and files that sottovoce did not write stay here. After a
    stop, the same command sends only what the Hub does not have.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage.

    \b
    sottovoce push tiny-4bit me/whisper-tiny-4bit
    """
    from sottovoce import api
    from sottovoce.cli.console import megabytes, progress_bar
    from sottovoce.errors import OutputError
    from sottovoce.hub.push import check_name

    set_threads(None)
    with usage_errors(OutputError):
        check_name(repo)
    with progress_bar() as progress:
        done = api.push(folder, repo, public=public, progress=progress)
    for name in done.left_out:
        click.echo(f"note: {name} was not written by sottovoce and stays here", err=True)
    if as_json:
        print_json(asdict(done))
    else:
        click.echo(f"{done.url} ({'private' if done.private else 'public'}): {counted(done.files, 'file')}, {megabytes(done.bytes)}")
