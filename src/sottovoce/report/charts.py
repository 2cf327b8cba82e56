"""Charts as inline SVG, by matplotlib, in the colors of the page they stand on."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sottovoce.errors import MissingDependencyError

# Okabe and Ito's colors, told apart by color-blind readers, on dark and on light ground.
SERIES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
INK = "#010203"  # stands for the page's own text color, and is replaced by it


def depth_chart(halves: Mapping[str, Mapping[str, Sequence[float | None]]], label: str, *, logarithmic: bool = False) -> str:
    """Curves along the depth, one panel per half of the model: `halves[half][series]` holds a value per layer.

    On a logarithmic scale what is zero is left out.
    """
    figure = _figure(9.5, 3.2)
    panels = figure.subplots(1, len(halves), sharey=True, squeeze=False)[0]
    for axis, (half, series) in zip(panels, halves.items(), strict=True):
        for (name, values), (color, marker) in zip(series.items(), SERIES, strict=False):
            known = [(i, value) for i, value in enumerate(values) if value is not None and (value > 0 or not logarithmic)]
            axis.plot(
                [i for i, _ in known], [v for _, v in known], label=name, color=color, marker=marker, markersize=3.5,
                linewidth=1.2,
            )  # fmt: skip
        if logarithmic:
            axis.set_yscale("log")
        axis.set_title(half)
        axis.set_xlabel("linear layer, in the order of the model")
        axis.grid(axis="y", alpha=0.25, color=INK)
    panels[0].set_ylabel(label)
    panels[0].legend(frameon=False, fontsize="small")
    return _as_svg(figure)


def heat_map(matrix: Sequence[Sequence[float]], parts: Sequence[str]) -> str:
    """A square matrix in two colors, for more and less than zero; `parts[i]` names the part of row i, and parts are divided by lines.

    Colors are linear up to the 99th percentile of the entries' sizes, so that a few large ones do not leave the rest white.
    """
    figure = _figure(7.2, 6.2)
    axis = figure.subplots()
    sizes = sorted(abs(value) for row in matrix for value in row)
    limit = sizes[min(len(sizes) - 1, int(0.99 * len(sizes)))] or sizes[-1] or 1.0
    image = axis.imshow(matrix, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest")
    runs = [i for i in range(len(parts)) if i == 0 or parts[i] != parts[i - 1]]
    for start, end in zip(runs, [*runs[1:], len(parts)], strict=True):
        for line in (axis.axhline, axis.axvline):
            if start:
                line(start - 0.5, color=INK, linewidth=0.4)
        if end - start > len(parts) / 40:
            axis.text(len(parts) + 0.5, (start + end - 1) / 2, parts[start], va="center", fontsize="small", color=INK)
    axis.set_xlabel("layer, in the order in which they are called")
    axis.set_ylabel("layer")
    bar = figure.colorbar(image, ax=axis, location="bottom", shrink=0.6, extend="both")
    bar.set_label("KL of a pair, nats per token", color=INK)
    return _as_svg(figure)


def look_chart(steps: Sequence[int], panels: Mapping[str, Mapping[str, Sequence[float]]], chosen: int) -> str:
    """Curves over the steps of a tuning, one panel each: `panels[title][series]` holds the KL at every look; `chosen`: the step kept."""
    figure = _figure(4.8 * len(panels), 3.2)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        for (name, values), (color, marker) in zip(series.items(), SERIES, strict=False):
            axis.plot(steps, values, label=name, color=color, marker=marker, markersize=3.5, linewidth=1.2)
        axis.axvline(chosen, color=INK, linewidth=0.8, linestyle="--", label="kept")
        axis.set_ylim(bottom=0)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_ylabel("KL, nats per token")
        axis.legend(frameon=False, fontsize="small")
    return _as_svg(figure)


def reliability_chart(diagrams: Mapping[str, Sequence[Sequence[float | None]]]) -> str:
    """Share of right words against mean confidence, per bin; `diagrams[name]` holds (confidence, share, count) of each bin."""
    figure = _figure(5.6, 4.2)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--", label="as trustworthy as it says")
    for (name, bins), (color, marker) in zip(diagrams.items(), SERIES, strict=False):
        full = [(confidence, share) for confidence, share, count in bins if count]
        axis.plot(
            [c for c, _ in full], [s for _, s in full], label=name, color=color, marker=marker, markersize=4.5,
            linewidth=1.2,
        )  # fmt: skip
    axis.set_xlabel("confidence")
    axis.set_ylabel("share of words that are right")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.legend(frameon=False, fontsize="small")
    return _as_svg(figure)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MissingDependencyError('reports need matplotlib: pip install "sottovoce[report]"') from exc
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def _as_svg(figure: Any) -> str:
    import matplotlib

    for axis in figure.axes:
        axis.patch.set_alpha(0)
        axis.tick_params(colors=INK)
        axis.title.set_color(INK)
        for text in (axis.xaxis.label, axis.yaxis.label, *(axis.get_legend().get_texts() if axis.get_legend() else ())):
            text.set_color(INK)
        for spine in axis.spines.values():
            spine.set_color(INK)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "sottovoce", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return inline(text.getvalue())


def inline(svg: str) -> str:
    """An SVG file as part of a page: without its prologue, as wide as there is room, in the page's text color."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)
    return svg.replace(INK, "currentColor").replace("font: ", "font-family: inherit; font: ")
