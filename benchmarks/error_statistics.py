"""Measure how the errors of quantized layers add up: by method, bits and calibration sample.

    python benchmarks/error_statistics.py --speech DIR [--bits 4 3] [--methods rtn gptq qep fade] [--seeds 0] [--out FILE]

DIR holds the speech: the sets `calibration` and `dev-librispeech`. Every quantized model is compared with the original on the first
`--held-out` utterances of `dev-librispeech`, layer by layer (see docs/error_statistics.md). A line of the file is one model; those that are
there are not measured again.
"""

import tempfile
from pathlib import Path

import torch
from common import RESULTS, is_measured, machine, script_parser

from sottovoce import api
from sottovoce.cli.console import quiet_libraries
from sottovoce.core.affine import Affine
from sottovoce.data.load import load_data
from sottovoce.evaluation.error_statistics import error_statistics, error_table
from sottovoce.fitting.speech import held_out_speech
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.json_lines import append_lines, whole_lines
from sottovoce.system.plain_data import to_plain
from sottovoce.system.progress import silent

TEST_SET = "dev-librispeech"
KEY = ("model", "bits", "method", "seed", "utterances", "held_out")


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--model", default="bundled:tiny.en")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--methods", nargs="+", default=["rtn", "gptq", "qep", "fade"], choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--utterances", type=int, default=64, help="of the calibration speech")
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "error_statistics.jsonl")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    model = api.load(arguments.model)
    speech = held_out_speech(model, load_data(arguments.speech / TEST_SET, at_most=arguments.held_out), language=None, progress=silent)
    parts = {layer.name: layer.part for layer in model.layers()}
    known = whole_lines(arguments.out)
    for seed in arguments.seeds:
        for bits in arguments.bits:
            for method in arguments.methods:
                about = dict(zip(KEY, (arguments.model, bits, method, seed, arguments.utterances, arguments.held_out), strict=True))
                if is_measured(about, known):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    quantized = api.quantize(
                        model,
                        Path(folder) / "q",
                        recipe=Recipe(method=METHODS[method], format=Affine(bits=bits), joined=0.0),
                        calibration=None if method == "rtn" else arguments.speech / "calibration",
                        utterances=arguments.utterances,
                        seed=seed,
                    )
                    units = {name: [name] for name in parts}
                    found = error_table(error_statistics(model, quantized.model, units, speech), parts)
                row = about | {name: value for name, value in to_plain(found).items() if name not in ("units", "matrix")}
                row |= machine()
                append_lines(arguments.out, [row])
                print(
                    bits,
                    method,
                    seed,
                    f"half sum {found.half_sum:.4f} measured {found.measured_kl:.4f} trace {found.half_trace:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
