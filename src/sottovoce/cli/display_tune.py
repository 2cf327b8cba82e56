"""Tables about tuning."""

from rich.table import Table

from sottovoce.cli.console import console
from sottovoce.quantization.tune_record import TuneRecord
from sottovoce.tuning.words import sentences


def print_tuned(record: TuneRecord, folder: str) -> None:
    """Print the looks at held-out speech, which one was kept, and what moved most."""
    terminal = console()
    short = record.start.short_kl is not None
    columns = ["step", *(["KL short, held out", "KL short, seen"] if short else []), "KL held out", "KL seen", "loops", ""]
    table = Table(*columns, title=folder)
    for look in record.looks:
        at_short = [f"{look.short_kl:.4f}", f"{look.seen_short_kl:.4f}"] if look.short_kl is not None else []
        kept = "kept" if look.step == record.chosen else ""
        table.add_row(str(look.step), *at_short, f"{look.kl:.4f}", f"{look.seen_kl:.4f}", str(len(look.loops)), kept)
    terminal.print(table)
    for sentence in sentences(record):
        terminal.print(sentence, highlight=False)
