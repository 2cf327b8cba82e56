"""Measure what becomes of a model that was calibrated on recordings joined to full windows: on short recordings and on full windows.

    python benchmarks/joined.py --speech DIR [--bits 4 3 2] [--shares 0 0.5 1] [--out FILE]

DIR holds the speech: `calibration`, `dev-librispeech`, `dev-accented`, `dev-home`, `longform`. FADE at 4 bits in groups of 32, at 3 and 2
bits in groups of 128, output head in floating point. Measured: KL to the original in nats per token on the first `--limit` recordings of
each dev set, which are 1 to 18 s long; of the first 28 s of each recording of `longform` the share of words that differ from the original,
capped, and which loop. A line of the file is one model; those that are there are not measured again.
"""

import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, SETS, is_measured, machine, script_parser

from sottovoce import api
from sottovoce.backends.registry import DEFAULT_TARGET, target_named
from sottovoce.cli.console import quiet_libraries
from sottovoce.core.affine import Affine
from sottovoce.data.load import load_data
from sottovoce.fitting.speech import held_out_speech
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.pipeline import quantize_model
from sottovoce.quantization.plan import make_plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.windows import make_windows
from sottovoce.system.json_lines import append_lines, whole_lines
from sottovoce.system.progress import silent
from tuning import LONG, window_texts, windows_score

KEY = ("model", "bits", "group_size", "joined", "utterances", "seed", "limit")
GROUPS = {4: 32, 3: 128, 2: 128}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--model", default="bundled:tiny.en")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2], choices=GROUPS)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--utterances", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=30, help="recordings of each dev set")
    parser.add_argument("--out", type=Path, default=RESULTS / "joined.jsonl")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    known = whole_lines(arguments.out)
    model = api.load(arguments.model)
    speech = prepare_speech(model, load_data(arguments.speech / "calibration").sample(arguments.utterances, arguments.seed))
    sets = {
        name: held_out_speech(model, load_data(arguments.speech / name, at_most=arguments.limit), language=None, progress=silent)
        for name in SETS
    }
    long = load_data(arguments.speech / LONG)
    original = window_texts(model, long)
    for bits in arguments.bits:
        for share in arguments.shares:
            group = GROUPS[bits]
            values = (arguments.model, bits, group, share, arguments.utterances, arguments.seed, arguments.limit)
            about: dict[str, Any] = dict(zip(KEY, values, strict=True))
            if is_measured(about, known):
                continue
            recipe = Recipe(format=Affine(bits=bits, group_size=group), head_bits=16, joined=share)
            began = time.process_time()
            quantized = quantize_model(model, make_plan(model, recipe, target_named(DEFAULT_TARGET)), recipe, speech).model
            row = about | {
                "windows": len(make_windows(model, speech, joined=share)),
                "processor_s": round(time.process_time() - began),
                "kl": {name: round(held.mean_divergence(quantized), 5) for name, held in sets.items()},
                "long_windows": windows_score(long, original, window_texts(quantized, long)),
                **machine(),
            }
            append_lines(arguments.out, [row])
            print(bits, share, row["windows"], row["processor_s"], row["kl"], row["long_windows"], flush=True)


if __name__ == "__main__":
    main()
