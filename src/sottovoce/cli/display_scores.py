"""Tables of scores and confidences."""

from rich.table import Table

from sottovoce.api import Evaluation
from sottovoce.cli.console import NONE, console, figure, megabytes, percent
from sottovoce.evaluation.confidence import UNSCALED, FittedConfidence
from sottovoce.evaluation.context import FULL
from sottovoce.evaluation.failures import FAILURES
from sottovoce.evaluation.gate import Gate
from sottovoce.evaluation.wer import Metric, Score
from sottovoce.system.counting import counted


def print_evaluation(result: Evaluation) -> None:
    """Print scores and speed, the original first if there is one."""
    timing = (_timing_cells(result.reference) if result.reference else None), _timing_cells(result)
    print_scores(result.score, result.reference.score if result.reference else None, timing=timing)
    terminal = console()
    if result.context != FULL:
        terminal.print(f"encoder context of the model: {result.context.in_words()}", highlight=False)
    terminal.print(f"peak memory {megabytes(result.peak_memory_bytes)}")


def print_scores(score: Score, reference: Score | None, *, timing: tuple[list[str] | None, list[str] | None] = (None, None)) -> None:
    """Print scores, the original first if there is one; `timing`: its cells, if something was timed."""
    terminal = console()
    speed = ("size", "x real time", "encoder s", "decoder s") if timing[1] else ()
    metric = score.metric
    table = Table("", metric, "95 % interval", "capped", "WER" if metric == "CER" else "CER", "sub", "ins", "del", *speed)
    if reference:
        table.add_row("original", *_score_cells(reference, metric), *(timing[0] or []))
    table.add_row("model", *_score_cells(score, metric), *(timing[1] or []))
    terminal.print(table)
    terminal.print(
        f"{counted(len(score.utterances), 'utterance')}, {counted(score.words, 'word')}, {counted(score.characters, 'character')} "
        f"in {', '.join(score.languages)}; "
        f"decoding: {', '.join(score.decodings)}; {score.unscored} without a reference text to score",
        highlight=False,
    )
    if score.silences:
        terminal.print(
            f"{counted(score.silences, 'utterance')} without words; {counted(score.invented_words, 'word')} recognized in them",
            highlight=False,
        )
    if paired := score.paired:
        terminal.print(
            f"against the original: {100 * paired.difference:+.2f} points of {metric} "
            f"({100 * paired.low:+.2f} .. {100 * paired.high:+.2f}); {counted(len(paired.better), 'utterance')} better, "
            f"{len(paired.worse)} worse (sign test p = {paired.sign_test:.3g}); "
            f"quality of inference {100 * (score.quality_of_inference or 0):.1f} %",
            highlight=False,
        )
    for name in FAILURES:
        if ids := getattr(score, name):
            terminal.print(f"{name.replace('_', ' ')} ({len(ids)}): {', '.join(ids)}", highlight=False)


def print_gate(result: Gate) -> None:
    """Print which failures the model adds to those of the original, on standard error."""
    terminal = console(stderr=True)
    for name, ids in result.added.items():
        if ids:
            terminal.print(f"added, {name.replace('_', ' ')} ({len(ids)}): {', '.join(ids)}", highlight=False)
    verdict = "passed" if result.open else "failed"
    terminal.print(f"gate {verdict}: at most {result.tolerance} added of each kind", highlight=False)


def _score_cells(score: Score, metric: Metric) -> list[str]:
    return [
        percent(score.rate),
        f"{100 * score.low:.2f} .. {100 * score.high:.2f}" if score.utterances else NONE,
        percent(score.capped_rate),
        percent(score.wer if metric == "CER" else score.cer),
        str(score.substitutions),
        str(score.insertions),
        str(score.deletions),
    ]


def _timing_cells(result: Evaluation) -> list[str]:
    """Size and times. A runtime that does not tell its parts apart counts all time as the decoder's; then the encoder has none."""
    transcription = result.transcription
    if not transcription.audio_s:  # all transcripts were read from a file
        return [megabytes(result.model_bytes), NONE, NONE, NONE]
    apart = transcription.encoder_s > 0
    return [
        megabytes(result.model_bytes),
        f"{result.rtfx:.1f}",
        f"{transcription.encoder_s:.1f}" if apart else NONE,
        f"{transcription.decoder_s:.1f}" if apart else f"{transcription.decoder_s:.1f} (both)",
    ]


def print_confidence(fitted: FittedConfidence) -> None:
    """Print how good the confidences are, raw and scaled."""
    terminal = console()
    table = Table("confidence", "scaling", "calibration error", "cross-entropy explained", "mean", "words right")
    rows = {
        "raw": (UNSCALED, fitted.raw_metrics),
        "temperature": (fitted.temperature, fitted.temperature_metrics),
        "Platt": (fitted.platt, fitted.platt_metrics),
    }
    for name, (scaling, metrics) in rows.items():
        table.add_row(
            name,
            f"{scaling.slope:.3f} z {scaling.offset:+.3f}",
            f"{metrics.expected_calibration_error:.3f}",
            f"{figure(metrics.normalized_cross_entropy)}",
            f"{metrics.mean_confidence:.3f}",
            f"{metrics.accuracy:.3f}",
        )
    terminal.print(table)
    terminal.print(
        f"fitted on {counted(fitted.fitted_words, 'word')}, measured on {fitted.raw_metrics.words} others; "
        f"{counted(fitted.left_out, 'utterance')} left out (repeated text, or longer than one pass)"
    )
