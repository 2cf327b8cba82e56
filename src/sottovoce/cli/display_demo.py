"""The demo's outcome, and what to do next."""

from pathlib import Path

from rich.table import Table

from sottovoce.cli.console import console, megabytes, percent
from sottovoce.cli.display_folder import parts_table
from sottovoce.demo.repeatable import KNOWN_SPEECH
from sottovoce.demo.run import FADE, FLOAT, MODEL, DemoResult


def print_demo(result: DemoResult) -> None:
    """Print size, words and divergence of the original, of plain rounding and of FADE, and what the difference is worth."""
    terminal, bits = console(), result.quantized.recipe.format.code_bits
    terminal.print(parts_table(result.quantized.reports, result.quantized.plan, "what FADE did"))
    table = Table("Whisper tiny.en", "size", "WER", "95 % interval", "KL", "looped")
    for name, score in result.scores.items():
        table.add_row(
            "original, size as float16" if name == FLOAT else f"{bits} bits, {name}",
            megabytes(result.bytes[name]),
            percent(score.wer),
            f"{100 * score.low:.2f} .. {100 * score.high:.2f}",
            "" if name == FLOAT else f"{result.divergences[name]:.3f}",
            str(len(score.looped)),
        )
    terminal.print(table)
    score = result.scores[FADE]
    paired = score.paired
    assert paired is not None  # noqa: S101 - as `run_demo` compares it
    verdict = "zero is outside" if paired.low > 0 or paired.high < 0 else "zero is inside, so these sentences cannot tell them apart"
    same = all(result.digests[name] == digest for name, digest in KNOWN_SPEECH.items())
    terminal.print(
        f"FADE against plain rounding: {100 * paired.difference:+.2f} points of WER, 95 % interval {100 * paired.low:+.2f} .. "
        f"{100 * paired.high:+.2f} ({verdict}). KL: mean divergence from the original's token distributions, in nats.\n"
        f"{len(score.utterances)} sentences, {score.words} words, three out of four in noise. The samples of the speech are "
        f"{'those' if same else 'not exactly those'} of the documented figures.",
        highlight=False,
        soft_wrap=True,
    )


def print_next(result: DemoResult, page: Path | None) -> None:
    """Print where everything is, and three commands to go on with."""
    terminal = console()
    if page is not None:
        terminal.print(f"Open {page}: every layer, and the words that changed.", highlight=False, soft_wrap=True)
    terminal.print("Next, with your own recordings (each line of your-test.jsonl has an audio and its text):", highlight=False)
    for command in (
        f"sottovoce transcribe {result.folder} your-recording.flac",
        f"sottovoce quantize {MODEL} tiny-4bit --calibration your-recordings/",
        f"sottovoce evaluate tiny-4bit your-test.jsonl --against {MODEL}",
    ):
        terminal.print(f"  {command}", highlight=False, soft_wrap=True)
