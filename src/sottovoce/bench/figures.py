"""Draw the figures of a bench by matplotlib: rates against bits with their spread, and strengths by depth."""

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sottovoce.bench.records import ORIGINAL, LayerStrengths
from sottovoce.bench.table import Row
from sottovoce.errors import MissingDependencyError
from sottovoce.quantization.methods import METHODS

# Okabe and Ito's colors, told apart by color-blind readers; each with a marker of its own.
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
          ("#000000", "X"), ("#999999", "*")]  # fmt: skip
LOG_FROM = 3.0  # a scale is logarithmic if its largest value is so many times its smallest
HALVES = ("encoder", "decoder")


def draw_figures(rows: Sequence[Row], layers: Sequence[LayerStrengths], out: Path) -> list[tuple[str, Path]]:
    """Write SVG files to `out`: word error rate and divergence against bits, and strength by depth. Returns their titles and paths.

    Raises `MissingDependencyError` without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MissingDependencyError('figures need matplotlib: pip install "sottovoce[figures]"') from exc
    written = []
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        if all(row.method == ORIGINAL for row in own):
            continue
        styles = _styles({row.method for row in own})
        name = "".join(c if c.isalnum() or c in "-." else "-" for c in model)
        for key, spread, title, unit, scale in (
            ("wer", "deviation", "word error rate", "%", 100.0),
            ("mean_kl", "kl_deviation", "mean divergence from the original", "nats per token", 1.0),
        ):
            finite = [row for row in own if math.isfinite(getattr(row, key))]
            sets = list(dict.fromkeys(row.data for row in finite if row.method != ORIGINAL))
            if not sets:  # no runtime shows its distributions
                continue
            figure = Figure(figsize=(4.2 * len(sets) + 1.4, 4.0), layout="constrained")
            axes = figure.subplots(1, len(sets), squeeze=False)[0]
            for axis, data in zip(axes, sets, strict=True):
                _against_bits(axis, [row for row in finite if row.data == data], styles, key, spread, scale)
                axis.set_title(data)
            axes[0].set_ylabel(f"{title} ({unit})")
            legend_beside(figure, axes)
            written.append((f"{model}: {title}", save_figure(figure, out / f"{name}-{key.replace('_', '-')}.svg")))
        strengths = _strengths(model, layers)
        if strengths:
            figure = Figure(figsize=(10.4, 3.6), layout="constrained")
            axes = figure.subplots(1, 2, sharey=True)
            for axis, half in zip(axes, HALVES, strict=True):
                _by_depth(axis, {series: halves[half] for series, halves in strengths.items()})
                axis.set_title(half)
            axes[0].set_ylabel("strength of the correction")
            legend_beside(figure, axes)
            written.append((f"{model}: strength of the correction", save_figure(figure, out / f"{name}-strength.svg")))
    return written


def _styles(methods: Collection[str]) -> dict[str, tuple[str, str]]:
    """Give color and marker of each method: the same in every figure for those that are known, what is left for others."""
    others = sorted(set(methods) - METHODS.keys() - {ORIGINAL})
    return {method: STYLES[i % len(STYLES)] for i, method in enumerate([*reversed(METHODS), *others]) if method in methods}


def _against_bits(axis: Any, rows: Sequence[Row], styles: Mapping[str, tuple[str, str]], key: str, spread: str, scale: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    widths = list(dict.fromkeys(row.width for row in sorted(rows, key=lambda row: (row.bits, row.width)) if row.method != ORIGINAL))
    values = []
    for i, (method, (color, marker)) in enumerate(styles.items()):
        own = sorted(
            (row for row in rows if row.method == method), key=lambda row: widths.index(row.width) if row.method != ORIGINAL else 0
        )
        if not own:
            continue
        at = [widths.index(row.width) + 0.06 * (i - (len(styles) - 1) / 2) for row in own]
        heights = [scale * getattr(row, key) for row in own]
        values += heights
        errors = [scale * getattr(row, spread) for row in own]
        axis.errorbar(at, heights, yerr=errors, label=method, color=color, marker=marker, capsize=3, linewidth=1.2)
    original = [row for row in rows if row.method == ORIGINAL]
    if original and key == "wer":
        axis.axhline(scale * original[0].wer, color="#666666", linestyle="--", linewidth=1, label="full precision")
        values.append(scale * original[0].wer)
    positive = [value for value in values if value > 0]
    if positive and max(positive) > LOG_FROM * min(positive):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xticks(range(len(widths)), widths)
    axis.set_xlim(-0.5, len(widths) - 0.5)
    axis.set_xlabel("format" if any(row.format for row in rows) else "bits per weight")
    axis.grid(axis="y", alpha=0.3)


def _strengths(model: str, layers: Sequence[LayerStrengths]) -> dict[str, dict[str, list[float]]]:
    """By method and bits: mean strengths over seeds in the order of the model, by half, where strengths vary."""
    groups = defaultdict[str, list[LayerStrengths]](list)
    for record in layers:
        series = f"{record.method}, {record.format or f'{record.bits} bits'}"
        # Of a version that did not say its settings, there may be one of other layers.
        if record.model == model and all(other.names == record.names for other in groups[series][:1]):
            groups[series].append(record)
    found: dict[str, dict[str, list[float]]] = {}
    for series, records in groups.items():
        means = [statistics.fmean(strengths) for strengths in zip(*(record.strengths for record in records), strict=True)]
        if len({strength for strength in means if strength > 0}) > 1:
            parts = records[0].parts
            found[series] = {half: [s for s, part in zip(means, parts, strict=True) if part.startswith(half)] for half in HALVES}
    return found


def _by_depth(axis: Any, series: Mapping[str, Sequence[float]]) -> None:
    for i, (name, strengths) in enumerate(sorted(series.items())):
        color, marker = STYLES[i % len(STYLES)]
        axis.plot(strengths, label=name, color=color, marker=marker, markersize=4, linewidth=1)
    axis.set_xlabel("linear layer, in the order of the model")
    axis.set_ylim(-0.05, 1.1)
    axis.grid(axis="y", alpha=0.3)


def legend_beside(figure: Any, axes: Sequence[Any]) -> None:
    """Put the legend of all axes beside them, where it hides no curve; a curve that several have stands there once."""
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside right upper", frameon=False, fontsize="small")


def save_figure(figure: Any, file: Path) -> Path:
    """Write `file`, and return it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # No date and a fixed salt: the same results give the same file.
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "sottovoce"}):
        figure.savefig(file, metadata={"Date": None})
    return file
