"""Measure what weighting positions by the curvature of the end loss does to FADE's divergence.

    python benchmarks/curvature.py --speech DIR --work SCRATCH [--bits 3 2] [--shares 0 0.5 1] [--utterances 64] [--limit 40]

DIR holds the speech: `calibration` and the three dev sets, of which the first LIMIT utterances are measured: mean KL to the original in
nats per token, teacher-forced on its own transcripts. What SCRATCH has is not made again.
"""

import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, SETS, machine, script_parser, write_json

from sottovoce import api
from sottovoce.checkpoint.manifest import MANIFEST
from sottovoce.cli.console import quiet_libraries
from sottovoce.core.affine import Affine
from sottovoce.data.load import load_data
from sottovoce.evaluation.held_out import HeldOutSpeech
from sottovoce.fitting.speech import held_out_speech
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.progress import silent


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="bundled:tiny.en")
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--utterances", type=int, default=64, help="of the calibration speech")
    parser.add_argument("--limit", type=int, default=40, help="utterances of each dev set")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "curvature.json")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = api.load(arguments.model)
    speech: dict[str, HeldOutSpeech] = {}
    for name in SETS:
        data = load_data(arguments.speech / name, at_most=arguments.limit)
        speech[name] = held_out_speech(model, data, language=None, progress=silent)
    rows = list[dict[str, Any]]()
    for bits in arguments.bits:
        for share in arguments.shares:
            folder, seconds = arguments.work / f"{bits}bit-{share:g}", None
            if not (folder / MANIFEST).is_file():
                began = time.process_time()
                api.quantize(
                    model,
                    folder,
                    recipe=Recipe(
                        method=method_named("fade", curvature=share),
                        format=Affine(bits=bits, group_size=arguments.group_size),
                        head_bits=16,
                        joined=0.0,
                    ),
                    calibration=arguments.speech / "calibration",
                    utterances=arguments.utterances,
                    resume=True,
                )
                seconds = round(time.process_time() - began)
            found = api.load(folder)
            kl = {name: round(held.mean_divergence(found), 5) for name, held in speech.items()}
            rows.append({"bits": bits, "curvature": share, "kl": kl, "processor_s": seconds})
            print(rows[-1], flush=True)
            result = {
                "model": arguments.model,
                "method": f"FADE, groups of {arguments.group_size}, head in floating point",
                "calibration_utterances": arguments.utterances,
                "utterances_of_each_set": arguments.limit,
                "tokens": {name: held.n_tokens for name, held in speech.items()},
                "rows": rows,
                "threads": arguments.threads,
                **machine(),
            }
            write_json(arguments.out, result)


if __name__ == "__main__":
    main()
