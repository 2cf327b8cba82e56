"""Fit a model at the sizes of uniform formats, and record every fit as a line of JSON.

    python benchmarks/fit.py bundled:tiny.en --target transcribe.cpp --bits 5.0 4.75 6.5 --calibration SPEECH --out results.jsonl

`--bits`: stored bits per weight; the size is that of the file whose layers have so many on average.
"""

import tempfile
import time
from pathlib import Path

import torch
from common import script_parser

from sottovoce import api
from sottovoce.backends.registry import backend_named
from sottovoce.cli.console import quiet_libraries
from sottovoce.fitting.run import Fit, FitSettings
from sottovoce.quantization.fit_record import FitGoal
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.json_lines import append_lines
from sottovoce.system.plain_data import to_plain


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("model")
    parser.add_argument("--target", required=True)
    parser.add_argument("--bits", type=float, nargs="+", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--utterances", type=int, default=128)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    model, backend = api.load(arguments.model), backend_named(arguments.target)
    fit = Fit(model, backend, FitGoal(max_kl=1.0), FitSettings())
    weights = sum(unit.weights for unit in fit.units)
    for bits in arguments.bits:
        size = fit.fixed_bytes + int(bits * weights / 8)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            done = api.fit(
                model,
                Path(folder) / "fit",
                max_size=size,
                recipe=Recipe(joined=0.0),
                target=arguments.target,
                calibration=arguments.calibration,
                utterances=arguments.utterances,
                held_out=arguments.held_out,
                swaps=arguments.swaps,
                baselines=arguments.baselines,
                verify=False,
            )
        row = {
            "model": arguments.model,
            "target": backend.name,
            "bits": bits,
            "max_bytes": size,
            "utterances": arguments.utterances,
            "held_out": arguments.held_out,
            "wall_s": round(time.perf_counter() - began, 1),
            **to_plain(done.record),
        }
        append_lines(arguments.out, [row])
        uniform = done.record.uniform
        print(
            bits, done.record.bytes / size, done.record.measured_kl, done.record.predicted_kl, uniform and uniform.measured_kl, flush=True
        )


if __name__ == "__main__":
    main()
