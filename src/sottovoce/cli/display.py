"""What a user sees in the terminal: progress on standard error, tables on standard output, and the same as plain data."""

import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sottovoce.api import Evaluation
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.checkpoint.verify import Verification
from sottovoce.errors import CheckpointError, ModelError
from sottovoce.evaluation.confidence import FittedConfidence, Scaling, words_of
from sottovoce.evaluation.failures import FAILURES
from sottovoce.evaluation.gate import Gate
from sottovoce.evaluation.recognizer import Recognizer
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import Score, score_to_dict
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.plan import resolve
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.progress import Progress as Report

if TYPE_CHECKING:
    from sottovoce.backends.export import Export
    from sottovoce.demo.run import DemoResult

EXPORT_NAMES = {"gguf": "{}.gguf", "ggml": "{}.bin", "onnx": "{}-onnx"}
PARTS = ("encoder", "decoder self", "decoder cross", "decoder mlp", "head")
MEGABYTE = 1e6
PIPE_WIDTH = 160  # columns
WORSE_THAN_ROUNDED = 1.25  # times the error of plain rounding from which on a layer is named


def _console(*, stderr: bool = False) -> Console:
    """Full width where nobody wraps lines: in files and pipes."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PIPE_WIDTH)


def quiet_libraries() -> None:
    """Keep the libraries' own notices and bars out of the terminal; errors are still raised."""
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # for the processes of a bench
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="transformers")


@contextmanager
def progress() -> Iterator[Report]:
    """A bar on standard error with what is being done, how far it is, and the time left."""
    console = _console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(doing: str, done: int, total: int) -> None:
            # Layer names change with every step; they share one bar.
            kind = "layers" if "." in doing or doing in ("", "proj_out") else doing
            text = f"layer {doing}" if kind == "layers" and doing else doing
            if kind not in tasks:
                tasks[kind] = bar.add_task(text or kind, total=total)
            bar.update(tasks[kind], completed=done, total=total, description=text or "layers")

        yield report


def plan(model: SpeechModel, recipe: Recipe) -> None:
    """What is about to be done, on standard error."""
    resolved = resolve(model, recipe)
    table = Table("part", "layers", "weights", "bits", "size now", "size then", title=f"Plan for {model.source}")
    for part in PARTS:
        steps = [(layer, grid) for layer, grid in resolved.layers if layer.part == part]
        if not steps:
            continue
        weights = [model.module(layer.name).weight for layer, _ in steps]
        count = sum(weight.numel() for weight in weights)
        size = sum(
            weight.numel() * grid.bits / 8
            + weight.numel() / grid.columns_per_group(weight.shape[1]) * (16 + (0 if grid.symmetric else grid.bits)) / 8
            for weight, (_, grid) in zip(weights, steps, strict=True)
        )
        bits = sorted({grid.bits for _, grid in steps})
        table.add_row(
            part,
            str(len(steps)),
            f"{count / 1e6:.1f} M",
            ", ".join(map(str, bits)),
            _megabytes(2 * count),
            _megabytes(size),
        )
    console = _console(stderr=True)
    console.print(table)
    if resolved.ignored:
        console.print(f"left in floating point: {', '.join(resolved.ignored)}")


def quantized(result: QuantizedModel, out: Path, target: str) -> None:
    """The outcome by part, and the next command."""
    console = _console()
    console.print(_parts_table([asdict(report) for report in result.reports], f"{result.model.source} -> {out}"))
    timing = result.timing
    console.print(
        f"{out}: {_megabytes((out / 'model.safetensors').stat().st_size)}; "
        f"{timing.labels_s:.0f} s transcribing calibration speech, {timing.solving_s:.0f} s solving"
    )
    for note in notes(result):
        console.print(f"note: {note}", highlight=False)
    if target in EXPORT_NAMES:
        command = f"sottovoce export {out} {target} {EXPORT_NAMES[target].format(out)}"
        console.print(f"next: {command}", highlight=False, soft_wrap=True)


def exported(done: "Export") -> None:
    """What was written, and how its words agree."""
    console, counts = _console(), Counter(done.types.values())
    kinds = ", ".join(f"{count} layers {kind}" for kind, count in counts.most_common()) or "all in floating point"
    console.print(f"{done.file}: {_megabytes(done.bytes)}; {kinds}", highlight=False)
    if done.widened:
        console.print(
            f"note: the codes of {len(done.widened)} layers are narrower than what holds them: same values, no gain in size",
            highlight=False,
        )
    if done.agreement is None:
        console.print("not tried in its runtime", highlight=False)
    else:
        console.print(
            f"tried: {done.agreement.equal} of {done.agreement.utterances} utterances as in PyTorch, "
            f"{done.agreement.word_difference:.1%} of the words differ",
            highlight=False,
        )


def verified(checked: Verification, out: Path) -> None:
    """That a folder is as it was written."""
    console = _console()
    console.print(
        f"{out}: {checked.files} files as they were written; {checked.layers} layers, {checked.weights / 1e6:.1f} M codes, all on the "
        "recipe's grid",
        highlight=False,
    )
    if checked.unlisted:
        console.print(f"note: not written by sottovoce: {', '.join(checked.unlisted)}", highlight=False)


def export_as_dict(done: "Export") -> dict[str, Any]:
    """An export as JSON."""
    return {
        "file": str(done.file),
        "format": done.format,
        "bytes": done.bytes,
        "types": done.types,
        "widened": list(done.widened),
        "agreement": None if done.agreement is None else asdict(done.agreement),
    }


def notes(result: QuantizedModel) -> list[str]:
    """What happened that a user should know."""
    found = []
    calibration = result.calibration or {}
    if cut := calibration.get("cut_at_silence"):
        found.append(f"{len(cut)} recordings were longer than one forward pass takes and were cut at silence: {', '.join(cut)}")
    asked = result.recipe.method.damping
    for report in result.reports:
        if report.damping is not None and not isinstance(asked, str) and report.damping > asked:
            found.append(f"{report.name}: damping was raised from {asked:g} to {report.damping:g} to make its Hessian positive definite")
        if report.dead_columns:
            found.append(f"{report.name}: {report.dead_columns} input channels were never active and got weight 0")
        if report.added_error is not None and report.rounded_error is not None:
            if report.added_error > WORSE_THAN_ROUNDED * report.rounded_error:
                found.append(
                    f"{report.name}: its codes add {report.added_error / report.rounded_error:.2f} times the output error of plain "
                    "rounding on the calibration speech; give it more bits with --rule, or calibrate on more speech"
                )
    if len({(r.bits, r.group_size) for r in result.reports}) > 1:
        found.append("the folder mixes widths, which the loader of transformers refuses; sottovoce reads it")
    return found


def quantized_as_dict(result: QuantizedModel, out: Path) -> dict[str, Any]:
    """The outcome as plain data."""
    return {
        "folder": str(out),
        "bytes": (out / "model.safetensors").stat().st_size,
        "timing": asdict(result.timing),
        "calibration": result.calibration,
        "notes": notes(result),
        "layers": [asdict(report) for report in result.reports],
    }


def evaluation(result: Evaluation) -> None:
    """Scores and speed, the reference system first if there is one."""
    timing = (_timing_cells(result.reference) if result.reference else None), _timing_cells(result)
    scores(result.score, result.reference.score if result.reference else None, timing=timing)
    console = _console()
    console.print(f"peak memory {_megabytes(result.peak_memory_bytes)}")


def scores(score: Score, reference: Score | None, *, timing: tuple[list[str] | None, list[str] | None] = (None, None)) -> None:
    """Scores, the reference system first if there is one; `timing`: its cells, if something was timed."""
    console = _console()
    speed = ("size", "x real time", "encoder s", "decoder s") if timing[1] else ()
    table = Table("", "WER", "95 % interval", "capped", "CER", "sub", "ins", "del", *speed)
    if reference:
        table.add_row("reference", *_score_cells(reference), *(timing[0] or []))
    table.add_row("model", *_score_cells(score), *(timing[1] or []))
    console.print(table)
    console.print(
        f"{len(score.utterances)} utterances, {score.words} words; {score.unscored} without a reference text to score",
        highlight=False,
    )
    if paired := score.paired:
        console.print(
            f"against the reference: {100 * paired.difference:+.2f} points of WER "
            f"({100 * paired.low:+.2f} .. {100 * paired.high:+.2f}); {len(paired.better)} utterances better, "
            f"{len(paired.worse)} worse (sign test p = {paired.sign_test:.3g}); "
            f"quality of inference {100 * (score.quality_of_inference or 0):.1f} %",
            highlight=False,
        )
    for name in FAILURES:
        if ids := getattr(score, name):
            console.print(f"{name.replace('_', ' ')} ({len(ids)}): {', '.join(ids)}", highlight=False)


def gate(result: Gate) -> None:
    """Which failures the model adds to those of the reference, on standard error."""
    console = _console(stderr=True)
    for name, ids in result.added.items():
        if ids:
            console.print(f"added, {name.replace('_', ' ')} ({len(ids)}): {', '.join(ids)}", highlight=False)
    verdict = "passed" if result.open else "failed"
    console.print(f"gate {verdict}: at most {result.tolerance} added of each kind", highlight=False)


def gate_as_dict(result: Gate) -> dict[str, Any]:
    """The gate's verdict as plain data."""
    added = {name: list(ids) for name, ids in result.added.items()}
    return {"passed": result.open, "tolerance": result.tolerance, "added": added}


def _score_cells(score: Score) -> list[str]:
    return [
        f"{100 * score.wer:.2f} %",
        f"{100 * score.low:.2f} .. {100 * score.high:.2f}",
        f"{100 * score.capped_wer:.2f} %",
        f"{100 * score.cer:.2f} %",
        str(score.substitutions),
        str(score.insertions),
        str(score.deletions),
    ]


def _timing_cells(result: Evaluation) -> list[str]:
    transcription = result.transcription
    return [
        _megabytes(result.model_bytes),
        f"{result.rtfx:.1f}",
        f"{transcription.encoder_s:.1f}",
        f"{transcription.decoder_s:.1f}",
    ]


def evaluation_as_dict(result: Evaluation) -> dict[str, Any]:
    """Scores and transcripts as plain data."""
    transcription = result.transcription
    return {
        **score_to_dict(result.score),
        "model_bytes": result.model_bytes,
        "peak_memory_bytes": result.peak_memory_bytes,
        "rtfx": result.rtfx,
        "audio_s": transcription.audio_s,
        "encoder_s": transcription.encoder_s,
        "decoder_s": transcription.decoder_s,
        "unusable": dict(transcription.unusable),
        "transcripts": [{"id": t.id, "text": t.text, "reference": t.reference} for t in transcription.transcripts],
        "reference": None if result.reference is None else evaluation_as_dict(result.reference),
    }


def confidence(fitted: FittedConfidence) -> None:
    """What the confidences are worth, as they are and scaled."""
    console = _console()
    table = Table("confidence", "scaling", "calibration error", "cross-entropy explained", "mean", "words right")
    rows = {
        "as it is": (Scaling(), fitted.raw_metrics),
        "temperature": (fitted.temperature, fitted.temperature_metrics),
        "Platt": (fitted.platt, fitted.platt_metrics),
    }
    for name, (scaling, trust) in rows.items():
        table.add_row(
            name,
            f"{scaling.slope:.3f} z {scaling.offset:+.3f}",
            f"{trust.expected_calibration_error:.3f}",
            f"{trust.normalized_cross_entropy:.3f}",
            f"{trust.mean_confidence:.3f}",
            f"{trust.accuracy:.3f}",
        )
    console.print(table)
    console.print(
        f"fitted on {fitted.fitted_words} words, measured on {fitted.raw_metrics.words} others; "
        f"{fitted.left_out} utterances left out (loops, or longer than one pass)"
    )


def confidence_as_dict(fitted: FittedConfidence) -> dict[str, Any]:
    """Scalings and their worth as plain data; empty bins of the reliability diagram have null for means."""
    content = asdict(fitted)
    for trust in ("raw_metrics", "temperature_metrics", "platt_metrics"):
        content[trust]["bins"] = [
            [None if count == 0 else mean, None if count == 0 else share, count] for mean, share, count in content[trust]["bins"]
        ]
    return content


def stored_scaling(model: str, name: str) -> Scaling:
    """The scaling called `name` ("raw": none) that a quantized folder carries. Raises `CheckpointError` if it carries none."""
    if name == "raw":
        return Scaling()
    stored = read_manifest(Path(model)).get("confidence")
    if stored is None:
        raise CheckpointError(f"{model}: carries no scaling of confidences; fit one with `sottovoce confidence --store`")
    return Scaling(**stored[name])


def words(recognizer: Recognizer, transcript: Transcript, scaling: Scaling) -> list[dict[str, Any]] | None:
    """Words with their confidences, or None where there are none (a recording of more than one pass).

    Raises `ModelError` for a runtime that does not tell how its tokens make words.
    """
    model = getattr(recognizer, "model", None)
    if model is None:
        raise ModelError(f"{recognizer.source}: word confidences need the runtime torch or onnx")
    if len(transcript.log_probabilities) != len(transcript.tokens):
        return None
    return [
        {"word": word.text, "confidence": round(float(scaling.apply(np.array([word.confidence]))[0]), 4)}
        for word in words_of(model, transcript)
    ]


def folder(manifest: dict[str, Any], out: Path) -> None:
    """A quantized folder: its parts, then every layer."""
    console = _console()
    console.print(_parts_table(manifest["layers"], f"{out}, from {manifest['source']}"))
    table = Table(
        "layer",
        "bits",
        "strength",
        "ridge",
        "damping",
        "vulnerability",
        "reliability",
        "gain",
        "inherited",
        "added",
        "outgoing",
    )
    for row in manifest["layers"]:
        keys = (
            "strength",
            "ridge",
            "damping",
            "vulnerability",
            "reliability",
            "calibration_gain",
            "inherited_error",
            "added_error",
            "outgoing_error",
        )
        table.add_row(row["name"].removeprefix("model."), str(row["bits"]), *(_figure(row[key]) for key in keys))
    console.print(table)
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    console.print(f"{_megabytes(size)} in {len(manifest['files'])} files, all checksums right")


def _parts_table(layers: list[dict[str, Any]], title: str) -> Table:
    table = Table("part", "layers", "bits per weight", "size", "mean strength", "inherited", "added", "outgoing", title=title)
    for part in PARTS:
        rows = [row for row in layers if row["part"] == part]
        if rows:
            weights = sum(row["weights"] for row in rows)
            bits = sum(row["weights"] * row["bits_per_weight"] for row in rows)
            means = (_mean(rows, key) for key in ("strength", "inherited_error", "added_error", "outgoing_error"))
            table.add_row(part, str(len(rows)), f"{bits / weights:.2f}", _megabytes(bits / 8), *map(_figure, means))
    return table


def demo(result: "DemoResult") -> None:
    """The demo's outcome: size and words of the original, of plain rounding, and of FADE."""
    console = _console()
    console.print(_parts_table([asdict(report) for report in result.quantized.reports], "what FADE did"))
    table = Table("Whisper tiny.en", "size", "WER", "95 % interval", "looped", "x real time")
    for name, outcome in result.evaluations.items():
        score = outcome.score
        table.add_row(
            name,
            _megabytes(result.bytes[name]),
            f"{100 * score.wer:.2f} %",
            f"{100 * score.low:.2f} .. {100 * score.high:.2f}",
            str(len(score.looped)),
            f"{outcome.rtfx:.1f}",
        )
    console.print(table)
    words = next(iter(result.evaluations.values())).score.words
    console.print(f"60 sentences, {words} words, three out of four in noise. The quantized model is in {result.folder}:")
    console.print(f"  sottovoce transcribe {result.folder} {result.folder.parent}/test/test-00.flac", highlight=False)


def demo_as_dict(result: "DemoResult") -> dict[str, Any]:
    """The demo's outcome as plain data."""
    return {
        "folder": str(result.folder),
        "systems": {
            name: {"bytes": result.bytes[name], "rtfx": outcome.rtfx, **score_to_dict(outcome.score)}
            for name, outcome in result.evaluations.items()
        },
        "layers": [asdict(report) for report in result.quantized.reports],
    }


def _mean(rows: list[dict[str, Any]], key: str) -> float | None:
    known = [row[key] for row in rows if row[key] is not None]
    return sum(known) / len(known) if known else None


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _megabytes(n_bytes: float) -> str:
    return f"{n_bytes / MEGABYTE:.1f} MB"
