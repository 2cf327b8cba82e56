"""Measure how the time and memory of quantizing grow with width, layers and utterances, on random Whisper models of published widths.

    python benchmarks/growth.py [--widths 384 512 768 1024 1280] [--layers 1 2 4 8] [--utterances 8 16 32 64] [--out FILE]

Each size runs in a process of its own, on one thread: FADE at 4 bits, groups of 32, with encoders and decoders of equal depth, windows of
30 seconds, 10 seconds of noise and 40 tokens an utterance, and a vocabulary of bytes, so the head costs nothing. Processor seconds of: one
float forward pass (`forward_s`), the sums over positions (`moments_s`), the solves (`solve_s`), and all together (`total_s`). Exponents are
slopes of a line through the logarithms. `large-v3` is a calculation from the largest width: its 32 and 32 layers, 128 utterances, 16 cores
on which forward passes and sums run 16 times as fast and solves 8 times.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, machine, script_parser, write_json
from memory import noise, random_whisper

from sottovoce.backends.registry import target_named
from sottovoce.bench.figures import save_figure
from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.quantization import collect, sequential
from sottovoce.quantization.batches import PositionWeights, make_batches
from sottovoce.quantization.calibration_set import CalibrationSpeech
from sottovoce.quantization.pipeline import quantize_model
from sottovoce.quantization.plan import make_plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.windows import make_windows
from sottovoce.system.memory import keep_freed_memory, peak_memory_bytes, reset_peak_memory

MEASURED = ("forward_s", "moments_s", "solve_s", "total_s", "peak_mib")
SECONDS, TOKENS = 10, 40
LARGE = {"layers": 32, "utterances": 128, "cores": 16, "solve_speedup": 8}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 512, 768, 1024, 1280])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--utterances", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.json")
    parser.add_argument("--worker", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(_measure(*arguments.worker)))
        return
    axes = {
        "width": [(width, 1, 16) for width in arguments.widths],
        "layers": [(arguments.widths[0], layers, 8) for layers in arguments.layers],
        "utterances": [(arguments.widths[0], 1, count) for count in arguments.utterances],
    }
    rows = dict[tuple[int, int, int], dict[str, float]]()
    for size in (size for sizes in axes.values() for size in sizes):
        if size not in rows:
            done = subprocess.run([sys.executable, __file__, "--worker", *map(str, size)], check=True, capture_output=True, text=True)
            rows[size] = json.loads(done.stdout)
            print(size, rows[size], flush=True)
    result = {
        "rows": [dict(zip(("width", "layers", "utterances"), size, strict=True)) | row for size, row in rows.items()],
        "exponents": {
            axis: {name: _exponent([(size[place], rows[size][name]) for size in sizes]) for name in MEASURED}
            for place, (axis, sizes) in enumerate(axes.items())
        },
        "large-v3": _large(max(arguments.widths), rows),
        "assumed": LARGE,
        **machine(),
    }
    write_json(arguments.out, result)
    _draw(axes, rows, result["exponents"], arguments.out.with_suffix(".svg"))


def _exponent(points: list[tuple[int, float]]) -> float:
    """The slope of the line of least squares through the logarithms."""
    x, y = np.log([[at, max(value, 1e-3)] for at, value in points]).T
    return round(float(np.polyfit(x, y, 1)[0]), 2)


def _large(width: int, rows: dict[tuple[int, int, int], dict[str, float]]) -> dict[str, float]:
    """Seconds of large-v3 from one encoder and one decoder layer of its width."""
    row = rows[(width, 1, 16)]
    times = LARGE["layers"] * LARGE["utterances"] / 16 / LARGE["cores"]
    walk = times * (row["total_s"] - row["solve_s"])
    solve = LARGE["layers"] * row["solve_s"] / LARGE["solve_speedup"]
    forward = times * row["forward_s"]
    total = walk + solve
    return {
        "forward_s": round(forward),
        "total_s": round(total),
        "solve_share": round(solve / total, 3),
        "forward_passes": round(total / forward, 2),
    }


def _measure(width: int, layers: int, utterances: int) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model, speech, recipe = random_whisper(width, layers=layers, heads=width // 64), _speech(utterances), Recipe(joined=0.0)
    plan = make_plan(model, recipe, target_named("torch"))
    spent = dict.fromkeys(("moments_s", "solve_s"), 0.0)
    _timed(collect, "_accumulate", "moments_s", spent)
    _timed(sequential, "quantize_layer", "solve_s", spent)
    with keep_freed_memory():
        batches = make_batches(
            model, make_windows(model, speech, joined=0.0), batch_size=8, positions=PositionWeights(subsampling=recipe.frame_subsampling)
        )
        for batch in batches[:1]:
            model.network(**batch.inputs)  # fresh memory costs time
        began = time.process_time()
        for batch in batches:
            model.network(**batch.inputs)
        forward = time.process_time() - began
        del batches
        reset_peak_memory()
        began = time.process_time()
        quantize_model(model, plan, recipe, speech)
        total = time.process_time() - began
    return {"forward_s": forward, **spent, "total_s": total, "peak_mib": peak_memory_bytes() / (1 << 20)}


def _speech(count: int) -> CalibrationSpeech:
    generator = np.random.default_rng(0)
    recordings = tuple((0.1 * generator.standard_normal(SECONDS * SAMPLE_RATE)).astype(np.float32) for _ in range(count))
    transcripts = tuple(tuple(int(token) for token in generator.integers(1, 250, TOKENS)) for _ in range(count))
    return replace(noise(count), recordings=recordings, transcripts=transcripts, seconds=float(SECONDS * count))


def _timed(module: Any, name: str, what: str, spent: dict[str, float]) -> None:
    """Count the processor time of a function of a module."""
    function: Callable[..., Any] = getattr(module, name)

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        result = function(*args, **kwargs)
        spent[what] += time.process_time() - began
        return result

    setattr(module, name, timed)


def _draw(
    axes: dict[str, list[tuple[int, int, int]]], rows: dict[tuple[int, int, int], dict[str, float]], exponents: Any, file: Path
) -> None:
    """Draw the times against each axis, both logarithmic. The same results give the same file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.4), layout="constrained")
    titles = {"forward_s": "one forward pass", "moments_s": "sums over positions", "solve_s": "solves", "total_s": "all"}
    for place, (plot, (axis, sizes)) in enumerate(zip(figure.subplots(1, len(axes)), axes.items(), strict=True)):
        for (name, title), marker in zip(titles.items(), "os^D", strict=True):
            label = f"{title}: {exponents[axis][name]:.1f}"
            plot.loglog([s[place] for s in sizes], [rows[s][name] for s in sizes], label=label, marker=marker, markersize=4, linewidth=1.2)
        plot.set_xlabel(axis)
        plot.set_xticks([s[place] for s in sizes], [str(s[place]) for s in sizes])
        plot.minorticks_off()
        plot.grid(alpha=0.3)
        plot.legend(frameon=False, fontsize="small", title="exponents", title_fontsize="small", loc="lower left", bbox_to_anchor=(0, 1.0))
        if place == 0:
            plot.set_ylabel("processor seconds")
    save_figure(figure, file)


if __name__ == "__main__":
    main()
