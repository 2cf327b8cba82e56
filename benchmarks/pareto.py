"""Draw the words that whisper.cpp's formats keep against the size of the file, by model and method.

    python benchmarks/pareto.py [--out docs/figures/formats.svg]

Points are the benches `number-systems` and `base-formats`, sizes are those of `format_sizes.json`. Rates are capped, on the first 40
recordings of each set. The divergence is not drawn: each model's is from its own original.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from common import MODELS, RESULTS, SETS, bench_rows, script_parser, sizes_by_format
from matplotlib.figure import Figure

from sottovoce.bench.figures import STYLES, legend_beside, save_figure

BENCHES = ("number-systems", "base-formats")
RUNTIME = "whisper.cpp"
LABEL: dict[str, Any] = {"textcoords": "offset points", "fontsize": "x-small"}
TITLES = {"fade": "FADE", "gptq": "GPTQ, unweighted grid", "rtn-imatrix": "RTN, importance matrix", "rtn": "RTN"}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS.parents[1] / "docs/figures/formats.svg")
    out = parser.parse_args().out
    sizes = sizes_by_format()
    rows = [row for bench in BENCHES for row in bench_rows(bench)]
    figure = Figure(figsize=(11.4, 4.0), layout="constrained")
    axes = figure.subplots(1, len(SETS))
    for axis, (data, title) in zip(axes, SETS.items(), strict=True):
        for number, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
            name = model.removeprefix("bundled:")
            own = [row for row in rows if (row["model"], row["data"]) == (model, data)]
            for (method, label), (_, marker) in zip(TITLES.items(), STYLES, strict=False):
                points = [row for row in own if row["method"] == method and row["format"] in sizes[name][RUNTIME]]
                places = [(sizes[name][RUNTIME][row["format"]] / 1e6, 100 * float(row["capped"])) for row in points]
                if places:
                    axis.plot(*zip(*places, strict=True), marker, color=STYLES[number][0], markersize=6, label=f"{MODELS[name]}, {label}")
                if method == "fade":
                    alike = defaultdict(list)  # formats of one size share a label, the one with most errors first
                    for (size, rate), row in sorted(zip(places, points, strict=True), key=lambda one: -one[0][1]):
                        alike[size].append((rate, row["format"]))
                    for size, own_points in alike.items():
                        rate, text = own_points[(len(own_points) - 1) // 2][0], "\n".join(name for _, name in own_points)
                        side = "right" if any(0 < other - size < 3 for other in alike) else "left"
                        offset = (-6 if side == "right" else 6, 0)
                        axis.annotate(text, (size, rate), xytext=offset, ha=side, va="center", **LABEL)
            original = next(row for row in own if not row["format"])
            axis.axhline(
                100 * float(original["capped"]), color=STYLES[number][0], linestyle="--", linewidth=1, label=f"{MODELS[name]}, original"
            )
        axis.set_xlabel("size of the file (MB)")
        axis.set_xlim(20, 52)
        axis.set_yscale("log")
        axis.set_yticks([10, 15, 20, 30, 50, 100], labels=["10", "15", "20", "30", "50", "100"])
        axis.set_ylim(9, 115)
        axis.minorticks_off()
        axis.grid(axis="y", alpha=0.3)
        axis.set_title(title)
    axes[0].set_ylabel("capped word error rate (%)")
    legend_beside(figure, axes)
    save_figure(figure, out)


if __name__ == "__main__":
    main()
