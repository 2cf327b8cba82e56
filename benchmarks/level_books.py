"""Measure how well formats represent random weights: signal to noise in dB of rounding to nearest, without any speech.

python benchmarks/level_books.py [--out benchmarks/results/level_books.json]
"""

from pathlib import Path

import torch
from common import RESULTS, script_parser, write_json

from sottovoce.core.affine import Affine
from sottovoce.core.formats import COMMON_WIDTH, format_named
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.rtn import rtn

NAMES = (
    "q4_0", "iq4_nl", "nf4", "nvfp4", "nvfp4_ggml", "halfpow2_4", "stochastic4_0", "pow2_4", "iq4_xs", "mxfp4",
    "stochastic3_0", "pow2_3", "halfpow2_3",
)  # fmt: skip


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "level_books.json")
    out = parser.parse_args().out
    torch.manual_seed(0)
    normal = torch.randn(512, 1024)
    weights = {"normal": normal, "heavy-tailed": torch.distributions.StudentT(5.0).sample((512, 1024)), "normal x 0.03": normal * 0.03}
    formats: dict[str, NumberFormat] = {name: format_named(name) for name in NAMES} | {"int3 symmetric": Affine(bits=3, symmetric=True)}
    rows = {}
    for name, number_format in formats.items():
        row = {"bits": number_format.bits_per_weight(COMMON_WIDTH)}
        for kind, weight in weights.items():
            error = weight - rtn(weight, number_format).dequantize()
            row[kind] = round(float(10 * torch.log10(weight.square().sum() / error.square().sum())), 2)
        rows[name] = row
        print(name, row, flush=True)
    write_json(out, rows)


if __name__ == "__main__":
    main()
