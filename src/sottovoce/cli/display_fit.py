"""Tables about a fit."""

from rich.table import Table

from sottovoce.cli.console import console, megabytes
from sottovoce.quantization.fit_record import FitRecord, LoopGuard, WordIncrease
from sottovoce.system.counting import counted


def print_fit(record: FitRecord, file: str) -> None:
    """Print what every unit got, and the fit beside its baselines."""
    terminal = console()
    table = Table("unit", "format", "bits per weight", "water-filling", "size", "predicted KL", title=file)
    for unit in record.units:
        table.add_row(
            unit.name.removeprefix("model."),
            unit.format or "float16",
            f"{unit.bits_per_weight:.2f}",
            f"{unit.ideal_bits:.2f}",
            megabytes(unit.bytes),
            f"{unit.predicted_kl:.5f}",
        )
    terminal.print(table)
    summary = Table("schedule", "size", "predicted KL", "measured KL")
    summary.add_row("fit", megabytes(record.bytes), f"{record.predicted_kl:.4f}", f"{record.measured_kl:.4f}")
    for baseline in record.baselines:
        measured = "not measured" if baseline.measured_kl is None else f"{baseline.measured_kl:.4f}"
        mean = f", mean of {baseline.draws}" if baseline.draws > 1 else ""
        title = f"{'uniform: ' if baseline is record.uniform else ''}{baseline.title}{mean}"
        summary.add_row(title, megabytes(baseline.bytes), f"{baseline.predicted_kl:.4f}", measured)
    summary.add_row("reverse water-filling (real bits, 4^-b)", megabytes(record.bytes), f"{record.ideal_kl:.4f}", "")
    terminal.print(summary)
    passes = record.passes
    terminal.print(
        f"KL in nats per token on {record.tokens} tokens that no choice has seen; "
        f"{record.swaps_accepted} of {record.swaps_tried} swaps accepted; cost: {passes.calibration} calibration passes of an "
        f"utterance, {passes.encoder:g} encoder and {passes.decoder:g} decoder passes to measure",
        highlight=False,
    )
    if record.words is not None:
        terminal.print(words_sentence(record.words), highlight=False)
    if record.guard is not None and record.guard.recordings:
        terminal.print(loops_sentence(record.guard), highlight=False)


def words_sentence(words: WordIncrease) -> str:
    """Say in a sentence what the change did to the words of speech that no choice has seen."""
    return (
        f"{words.metric} {words.points:+.2f} points (95 % interval {words.low:+.2f} to {words.high:+.2f}) against the original's "
        f"{words.original_rate:.2f} %, on {counted(words.utterances, 'utterance')} that no choice has seen"
    )


def loops_sentence(guard: LoopGuard) -> str:
    """Say in a sentence what listening for loops found."""
    if not guard.looped:
        return f"no new loop in {counted(guard.recordings, 'long recording')}"
    raised = f"; more bits went to {', '.join(name.removeprefix('model.') for name in guard.raised)}" if guard.raised else ""
    remaining = f"{len(guard.remaining)} loop at the end ({', '.join(guard.remaining)})" if guard.remaining else "none loops at the end"
    return (
        f"of {counted(guard.recordings, 'long recording')}, {len(guard.looped)} looped that do not with the original{raised}; {remaining}"
    )
