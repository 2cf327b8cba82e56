"""`sottovoce formats`: the number formats, and what executes them."""

from __future__ import annotations

import click

from sottovoce.cli.options import json_option, print_json


@click.command(short_help="List number formats and the runtimes that store them.")
@json_option
def formats(as_json: bool) -> None:
    """List the number formats, their sizes, and the runtimes that hold them.

    \b
    sottovoce formats
    """
    from sottovoce.backends.formats import known_formats
    from sottovoce.cli.display_folder import print_formats
    from sottovoce.system.plain_data import to_plain

    known = known_formats()
    if as_json:
        print_json(to_plain(known))
    else:
        print_formats(known)
