"""Tables about tuning."""

from rich.table import Table

from sottovoce.cli.console import console
from sottovoce.quantization.tune_record import TuneRecord


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


def sentences(record: TuneRecord) -> list[str]:
    """Say in sentences what tuning did."""
    if record.chosen:
        done = f"{record.numbers:,} scales and floating-point numbers tuned, codes kept; the look after step {record.chosen} is kept"
    else:
        done = "no look was better than the start, so the start is kept: the folder computes what it did before"
    said = [
        f"{done}; KL to {record.original} in nats per token, on {record.tokens} tokens of {len(record.held_out)} held-out utterances; "
        f"rates {record.rate:.2g} (scales), {record.float_rate:.2g} (the rest)"
    ]
    if record.calibrated_on:
        said.append(
            f"{record.calibrated_on} held-out utterances are of speakers on whom the codes were calibrated, which flatters the start"
        )
    if record.chosen:
        said.append("moved most: " + ", ".join(f"{one.name.removeprefix('model.')} {one.change:.2%}" for one in record.moved[:3]))
    if record.best.loops:
        said.append(f"loops where the original does not: {', '.join(record.best.loops)}")
    return said
