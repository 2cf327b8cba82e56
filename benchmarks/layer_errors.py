"""Sum up the diagnostics of a quantized folder by kind of layer: which layers take the error.

    python benchmarks/layer_errors.py FOLDER [--out benchmarks/results/moonshine-layers.json]

FOLDER was written by `sottovoce quantize`, with a method that calibrates. A row is one kind of layer (a part of the network and the last
name of the module); figures are medians over the layers of that kind, errors as shares of the layers' own output energy.
"""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import RESULTS, machine, script_parser, write_json

from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.quantization.layer import LayerReport

FIGURES = ("rounded_error", "added_error", "inherited_error", "outgoing_error", "strength", "calibration_gain")


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "moonshine-layers.json")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.folder)
    kinds = defaultdict[tuple[str, str], list[LayerReport]](list)
    for layer in manifest.layers:
        kinds[layer.part, layer.name.rsplit(".", 1)[-1]].append(layer)
    rows: list[dict[str, Any]] = [
        {"part": part, "layer": name, "count": len(own)} | {figure: _median(own, figure) for figure in FIGURES}
        for (part, name), own in kinds.items()
    ]
    method, calibration = manifest.recipe.method.title, manifest.calibration
    write_json(
        arguments.out,
        {
            "model": manifest.source,
            "method": method,
            "target": manifest.plan.target,
            "bits_per_weight": round(manifest.plan.bits_per_weight, 3),
            "utterances": 0 if calibration is None else len(calibration.utterances),
            "rows": rows,
            **machine(),
        },
    )
    for row in rows:
        print(row)


def _median(layers: list[LayerReport], figure: str) -> float | None:
    known = [value for layer in layers if (value := getattr(layer, figure)) is not None]
    return round(statistics.median(known), 6) if known else None


if __name__ == "__main__":
    main()
