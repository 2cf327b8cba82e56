"""`sottovoce push`: a quantized folder or an export to the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sottovoce.cli.options import json_option, print_json, set_threads
from sottovoce.system.counting import counted


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--public", is_flag=True, help="Make the repository public (default: private).")
@json_option
def push(folder: Path, repo: str, public: bool, as_json: bool) -> None:
    """Upload a quantized FOLDER, or an exported file or folder, to the model repository REPO (OWNER/NAME) on the Hugging Face Hub.

    Nothing is asked. The repository is made if it is not there, private unless --public is given. After a stop the same command sends
    only what the Hub does not have. A FOLDER that `sottovoce verify` refuses is not uploaded. The token is that of `hf auth login`, or
    HF_TOKEN.

    \b
    sottovoce push tiny-4bit me/whisper-tiny-4bit
    """
    from sottovoce import api
    from sottovoce.cli.console import megabytes, progress_bar

    set_threads(None)
    with progress_bar() as progress:
        done = api.push(folder, repo, public=public, progress=progress)
    for name in done.left_out:
        click.echo(f"note: {name} was not written by sottovoce and stays here", err=True)
    if as_json:
        print_json(asdict(done))
    else:
        click.echo(f"{done.url} ({'private' if done.private else 'public'}): {counted(done.files, 'file')}, {megabytes(done.bytes)}")
