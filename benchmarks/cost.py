"""Measure what quantizing costs, in full-precision forward passes over the same batches.

    python benchmarks/cost.py --speech DIR [--utterances 128] [--repeats 4]

DIR/calibration holds the speech. Each run times the bare forward pass over batches of 8, and then the quantization on the same
batches: the forward passes of both networks, moments, all choices, and rounding. The time to transcribe the calibration speech is
reported separately. The first run also waits for fresh memory, which takes seconds per gigabyte on some virtual machines: it is
reported as `cold`, and `ratio` is the median of the others.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from common import RESULTS, machine, script_parser, write_json

from sottovoce.backends.registry import DEFAULT_TARGET, target_named
from sottovoce.core.affine import Affine
from sottovoce.data.load import load_data
from sottovoce.models.load import load_model
from sottovoce.quantization.batches import PositionWeights, make_batches
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.pipeline import quantize_model
from sottovoce.quantization.plan import make_plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.windows import make_windows
from sottovoce.system.memory import keep_freed_memory, peak_memory_bytes


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--speech", required=True)
    parser.add_argument("--model", default="bundled:tiny.en")
    parser.add_argument("--utterances", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS / "cost.json")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    with keep_freed_memory():
        _measure(arguments)


def _measure(arguments: argparse.Namespace) -> None:
    model, recipe = load_model(arguments.model), Recipe(format=Affine(group_size=128), head_bits=16, joined=0.0)
    speech = prepare_speech(model, load_data(Path(arguments.speech) / "calibration").sample(arguments.utterances, 0))
    plan = make_plan(model, recipe, target_named(DEFAULT_TARGET))
    runs = []
    for _ in range(arguments.repeats + 1):
        batches = make_batches(
            model, make_windows(model, speech, joined=0.0), batch_size=8, positions=PositionWeights(subsampling=recipe.frame_subsampling)
        )
        started = time.perf_counter()
        for batch in batches:
            model.network(**batch.inputs)
        forward_s = time.perf_counter() - started
        del batches
        solving_s = quantize_model(model, plan, recipe, speech).timing.solving_s
        runs.append({"forward_s": forward_s, "solving_s": solving_s, "ratio": solving_s / forward_s})
    result = {
        "model": arguments.model,
        "utterances": arguments.utterances,
        "audio_s": speech.seconds,
        "frame_subsampling": recipe.frame_subsampling,
        "labels_s": speech.label_time_s,
        "cold": runs[0],
        "runs": runs[1:],
        "ratio": statistics.median(run["ratio"] for run in runs[1:]),
        "peak_memory_gb": peak_memory_bytes() / 1e9,
        "threads": torch.get_num_threads(),
        **machine(),
    }
    write_json(arguments.out, result)
    print(f"ratio {result['ratio']:.2f}")


if __name__ == "__main__":
    main()
