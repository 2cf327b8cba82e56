"""Draw the word error rate of every file that was measured in a runtime against its size: which model, at how many bits, for which size.

python benchmarks/sizes.py [--out docs/figures/sizes.svg]

The points are those of `benchmarks/results/runtimes/*.json` (`benchmarks/runtimes.py`): files alone, whose words were measured.
"""

import json
from pathlib import Path

from common import MODELS, RESULTS, SETS, script_parser
from matplotlib.figure import Figure

from sottovoce.bench.figures import STYLES, legend_beside, save_figure

SHOWN = ("dev-librispeech", "dev-home")  # loops of single utterances decide the rate of the accented set
# What a point is called, by the words in its system's name.
KINDS = {
    "4 bits, FADE": ("4 bits FADE, transcribe.cpp", "4 bits FADE, whisper.cpp", "4 bits FADE, ONNX Runtime"),
    "4 bits, FADE, 8-bit encoder": ("4 bits FADE, 8-bit encoder, ONNX Runtime",),
    "4 bits, rounded": ("4 bits RTN, transcribe.cpp",),
    "8 bits, rounded": ("8 bits RTN (Q8_0), transcribe.cpp", "int8 weights as shipped, ONNX Runtime"),
    "float16": ("float16, transcribe.cpp", "float32, PyTorch", "float32, ONNX Runtime"),
}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS.parents[1] / "docs/figures/sizes.svg")
    out = parser.parse_args().out
    figure = Figure(figsize=(10.4, 4.0), layout="constrained")
    axes = figure.subplots(1, len(SHOWN))
    measured = {model: json.loads(file.read_text()) for model in MODELS if (file := RESULTS / f"runtimes/{model}.json").is_file()}
    for axis, data in zip(axes, SHOWN, strict=True):
        for (model, found), (color, _) in zip(measured.items(), STYLES, strict=False):
            for (kind, names), (_, marker) in zip(KINDS.items(), STYLES, strict=False):
                points = [found["systems"][name] for name in names if data in found["systems"].get(name, {}).get("sets", {})]
                sizes, rates = [point["bytes"] / 1e6 for point in points], [100 * point["sets"][data]["wer"] for point in points]
                axis.plot(sizes, rates, marker, color=color, markersize=6, label=f"{MODELS[model]}, {kind}" if points else None)
        axis.set_xscale("log")
        axis.set_xticks([25, 50, 100, 200], labels=["25", "50", "100", "200"])
        axis.minorticks_off()
        axis.set_xlabel("size of the file (MB)")
        axis.set_ylim(0, None)
        axis.grid(axis="y", alpha=0.3)
        axis.set_title(SETS[data])
    axes[0].set_ylabel("word error rate (%)")
    legend_beside(figure, axes)
    save_figure(figure, out)


if __name__ == "__main__":
    main()
