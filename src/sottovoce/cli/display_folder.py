"""Tables about plans, quantized folders and exports."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.table import Table

from sottovoce.backends.export import Export
from sottovoce.backends.formats import KnownFormat
from sottovoce.backends.layer_bytes import planned_bytes, widened_layers
from sottovoce.backends.registry import BACKENDS
from sottovoce.checkpoint.layout import WEIGHTS, loads_in_transformers
from sottovoce.checkpoint.manifest import MANIFEST, Manifest
from sottovoce.checkpoint.verify import Verification
from sottovoce.cli.console import console, figure, megabytes
from sottovoce.cli.display_fit import print_fit
from sottovoce.cli.display_tune import print_tuned
from sottovoce.core.formats import short_title
from sottovoce.evaluation.certificate_words import sentences
from sottovoce.models.layers import Part
from sottovoce.quantization.layer import LayerReport
from sottovoce.quantization.methods import GPTQ
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.plan import Plan
from sottovoce.system.counting import counted

WORSE_THAN_ROUNDED = 1.25  # times the error of plain rounding from which on a layer is named
DIAGNOSTICS = {
    "strength": "strength",
    "ridge": "ridge",
    "damping": "damping",
    "vulnerability": "vulnerability",
    "reliability": "reliability",
    "gain": "calibration_gain",
    "inherited": "inherited_error",
    "added": "added_error",
    "outgoing": "outgoing_error",
}


def print_plan(plan: Plan, source: str) -> None:
    """Print what is about to be done, on standard error."""
    table = Table(
        "part", "layers", "weights", "format", "size in float16", "size in the file", title=f"Plan for {source}, target {plan.target}"
    )
    sizes = planned_bytes(plan)
    for part in get_args(Part):
        layers = [layer for layer in plan.layers if layer.part == part]
        if layers:
            weights = sum(layer.weights for layer in layers)
            table.add_row(
                part,
                str(len(layers)),
                f"{weights / 1e6:.1f} M",
                "; ".join(dict.fromkeys(layer.format.title for layer in layers)),
                megabytes(2 * weights),
                megabytes(sum(sizes[layer.name] for layer in layers)),
            )
    terminal = console(stderr=True)
    terminal.print(table)
    if plan.ignored:
        terminal.print(f"left in floating point: {', '.join(plan.ignored)}")
    if widened := widened_layers(plan):
        terminal.print(f"note: {_widened_note(len(widened))}", highlight=False)


def _widened_note(count: int) -> str:
    return f"the codes of {counted(count, 'layer')} are narrower than what holds them: same values, no gain in size"


def print_quantized(result: QuantizedModel, out: Path) -> None:
    """Print the outcome by part, and the next command."""
    terminal = console()
    terminal.print(parts_table(result.reports, result.plan, f"{result.model.source} -> {out}"))
    timing = result.timing
    terminal.print(
        f"{out}: {megabytes((out / WEIGHTS).stat().st_size)} of weights; "
        f"{timing.labels_s:.0f} s transcribing calibration speech, {timing.solving_s:.0f} s quantizing"
    )
    for note in notes(result):
        terminal.print(f"note: {note}", highlight=False)
    backend = BACKENDS[result.plan.target]
    if backend.write is not None:
        command = f"sottovoce export {out} {backend.name} {backend.file_name.format(out)}"
        terminal.print(f"next: {command}", highlight=False, soft_wrap=True)


def notes(result: QuantizedModel) -> list[str]:
    """List what a user should know about a result."""
    found = []
    if result.calibration and (cut := result.calibration.cut_at_silence):
        found.append(f"{counted(len(cut), 'recording')} longer than one forward pass takes, cut at silence: {', '.join(cut)}")
    if result.calibration:
        found += [f"left out of the calibration: {reason}" for reason in result.calibration.left_out.values()]
    method = result.recipe.method
    for report in result.reports:
        if isinstance(method, GPTQ) and report.damping is not None and not isinstance(method.damping, str):
            if report.damping > method.damping:
                found.append(
                    f"{report.name}: damping was raised from {method.damping:g} to {report.damping:g} to make its Hessian positive definite"
                )
        if report.dead_columns:
            found.append(f"{report.name}: {report.dead_columns} input channels are always 0, and their weights were set to 0")
        if report.added_error is not None and report.rounded_error is not None:
            if report.added_error > WORSE_THAN_ROUNDED * report.rounded_error:
                found.append(
                    f"{report.name}: its codes add {report.added_error / report.rounded_error:.2f} times the output error of plain "
                    "rounding on the calibration speech; give it more bits with --rule, or calibrate on more speech"
                )
    if widened := widened_layers(result.plan):
        found.append(_widened_note(len(widened)))
    if not loads_in_transformers(result.plan):
        found.append("the loader of transformers takes one affine format for all layers and refuses this folder; sottovoce reads it")
    return found


def print_folder(manifest: Manifest, folder: str | Path) -> None:
    """Print a quantized folder: its parts, then every layer."""
    terminal = console()
    terminal.print(parts_table(manifest.layers, manifest.plan, f"{folder}, from {manifest.source}, target {manifest.plan.target}"))
    table = Table("layer", "format", "bits per weight", "entropy", *DIAGNOSTICS)
    for report in manifest.layers:
        cells = (figure(getattr(report, name)) for name in DIAGNOSTICS.values())
        title = short_title(manifest.plan.format(report.name))
        sizes = (f"{report.bits_per_weight:.4g}", figure(report.code_entropy))
        table.add_row(report.name.removeprefix("model."), title, *sizes, *cells)
    terminal.print(table)
    if said := against_worst_case(manifest.layers):
        terminal.print(said, highlight=False)
    for certificate in manifest.certificates:
        said = " ".join(sentences(certificate))
        terminal.print(f"certificate ({certificate.runtime}, {megabytes(certificate.bytes)}): {said}", highlight=False)
    if manifest.fit is not None:
        print_fit(manifest.fit, f"{folder}: the fit")
    if manifest.tune is not None:
        print_tuned(manifest.tune, f"{folder}: the tuning")
    terminal.print(f"{megabytes(manifest.bytes)} in {counted(len(manifest.files), 'file')} beside {MANIFEST}, all checksums right")


def against_worst_case(reports: Sequence[LayerReport]) -> str | None:
    """Say how the errors that codes add compare with the most that they can be where nothing clips; None: no layer knows."""
    shares = sorted(
        (report.added_error / report.worst_case, report.name) for report in reports if report.added_error is not None and report.worst_case
    )
    if not shares:
        return None
    share, name = shares[-1]
    return (
        "added error against its worst case (every weight half a step off, no code clipped): median "
        f"{shares[len(shares) // 2][0]:.2f}, largest {share:.2f} ({name.removeprefix('model.')})"
    )


def print_formats(known: Sequence[KnownFormat]) -> None:
    """Print the named formats and who holds them."""
    table = Table(
        "format", "bits per weight", "levels", "block", "rows", "runtimes", title="Number formats, by size with scales and minima"
    )
    for one in known:
        least = min((holder.row_multiple for holder in one.holders), default=1)
        runtimes = ", ".join(
            holder.backend
            + (f" (rows of {holder.row_multiple})" if holder.row_multiple > least else "")
            + (f" (as {holder.stored})" if holder.widened else "")
            for holder in one.holders
        )
        block = "row" if one.block is None else str(one.block)
        rows = "any" if least == 1 else f"multiples of {least}"
        table.add_row(one.name, f"{one.bits_per_weight:.4g}", one.levels, block, rows, runtimes)
    console().print(table)
    console().print('"as": held in wider codes there, the same values at no gain in size', highlight=False)


def print_verified(checked: Verification, folder: str | Path) -> None:
    """Print that a folder is as it was written."""
    terminal = console()
    terminal.print(
        f"{folder}: {counted(checked.files, 'file')} as they were written; {counted(checked.layers, 'layer')}, "
        f"{checked.weights / 1e6:.1f} M codes, all in the "
        "plan's formats",
        highlight=False,
    )
    if checked.unlisted:
        terminal.print(f"note: not written by sottovoce: {', '.join(checked.unlisted)}", highlight=False)


def print_exported(done: Export) -> None:
    """Print what was written, and how its words agree."""
    terminal, counts = console(), Counter(kind.name for kind in done.types.values())
    kinds = ", ".join(f"{counted(count, 'layer')} {kind}" for kind, count in counts.most_common()) or "all in floating point"
    terminal.print(f"{done.file}: {megabytes(done.bytes)}; {kinds}", highlight=False)
    if done.widened:
        terminal.print(
            f"note: {_widened_note(len(done.widened))}",
            highlight=False,
        )
    if done.agreement is None:
        terminal.print("not tested in its runtime", highlight=False)
    else:
        terminal.print(
            f"tested: {done.agreement.equal} of {counted(done.agreement.utterances, 'utterance')} as in PyTorch, "
            f"{done.agreement.word_difference:.1%} of the words differ",
            highlight=False,
        )


def parts_table(reports: Sequence[LayerReport], plan: Plan, title: str) -> Table:
    """Return the table of a model's parts; sizes are those in the file of the plan's target."""
    sizes = planned_bytes(plan)
    table = Table("part", "layers", "bits per weight", "size in the file", "mean strength", "inherited", "added", "outgoing", title=title)
    for part in get_args(Part):
        own = [report for report in reports if report.part == part]
        if own:
            weights = sum(report.weights for report in own)
            bits = sum(report.weights * report.bits_per_weight for report in own)
            means = (_mean(own, name) for name in ("strength", "inherited_error", "added_error", "outgoing_error"))
            table.add_row(
                part, str(len(own)), f"{bits / weights:.2f}", megabytes(sum(sizes[report.name] for report in own)), *map(figure, means)
            )
    return table


def _mean(reports: Sequence[LayerReport], name: str) -> float | None:
    known = [value for report in reports if (value := getattr(report, name)) is not None]
    return sum(known) / len(known) if known else None
