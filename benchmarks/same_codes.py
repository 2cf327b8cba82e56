"""Compare the codes of today with a record: a change of structure must not change them.

    python benchmarks/same_codes.py --speech DIR [--models tiny.en base] [--methods rtn gptq qep awq fade] [--bits 4 3] [--write]

DIR/calibration holds the speech; eight utterances are sampled. For each model, target, width and method the sha256 of all codes,
scales and zero points, and that of all weights of the finished network, are compared with `benchmarks/results/codes.json`. The last
digits of matrix products depend on the processor and on the number of threads, so another kind of machine gives other codes for every
method that calibrates: there is a record for each kind of processor. Exit code 1 if one differs or is not in the record of this
processor. `--write` puts what was found into it, cell by cell.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, script_parser, write_json

from sottovoce.backends.registry import target_named
from sottovoce.data.load import load_data
from sottovoce.models.load import load_model
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.pipeline import QuantizedModel, quantize_model
from sottovoce.quantization.plan import make_plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.plain_data import to_plain
from sottovoce.system.versions import processor

RECORD = RESULTS / "codes.json"
TARGETS = ("compressed-tensors", "transcribe.cpp")  # onnxruntime has the first one's grid, whisper.cpp the second one's
UTTERANCES = 8


def digests(result: QuantizedModel) -> dict[str, str]:
    """Return the sha256 of codes and parameters, and of all weights of the network."""
    codes, weights = hashlib.sha256(), hashlib.sha256()
    for name in sorted(result.weights):
        weight = result.weights[name]
        for tensor in (weight.codes, *weight.parameters.values()):
            codes.update(name.encode())
            codes.update(tensor.contiguous().numpy().tobytes())
    for name, parameter in sorted(result.model.network.named_parameters()):
        weights.update(name.encode())
        weights.update(parameter.detach().contiguous().numpy().tobytes())
    return {"codes": codes.hexdigest(), "weights": weights.hexdigest()}


def record_of(records: list[dict[str, Any]], here: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a processor; without one, an empty record that is added."""
    for record in records:
        if record["processor"] == here:
            return record
    records.append({"processor": here, "digests": {}})
    return records[-1]


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--speech", required=True, type=Path)
    parser.add_argument("--models", nargs="+", default=["tiny.en", "base"])
    parser.add_argument("--methods", nargs="+", default=["rtn", "gptq", "qep", "awq", "fade"])
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3])
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    records = json.loads(RECORD.read_text())
    record = record_of(records, to_plain(processor()))
    if arguments.write:
        record |= machine() | {"threads": torch.get_num_threads()}
    different = 0
    for name in arguments.models:
        model = load_model(f"bundled:{name}")
        speech = prepare_speech(model, load_data(arguments.speech / "calibration").sample(UTTERANCES, 0))
        for bits in arguments.bits:
            for target in map(target_named, TARGETS):
                for method in arguments.methods:
                    recipe = Recipe(method=METHODS[method], format=target.format(bits=bits), joined=0.0)
                    found = digests(quantize_model(model, make_plan(model, recipe, target), recipe, speech))
                    key = f"{name}, {target.name}, {bits} bits, {method}"
                    same = record["digests"].get(key) == found
                    different += not same
                    print(f"{key}: {'same' if same else 'different' if key in record['digests'] else 'not in the record'}", flush=True)
                    if arguments.write:
                        record["digests"][key] = found
                        write_json(RECORD, records)
    if different and not arguments.write:
        sys.exit(f"{different} differ from the record")


if __name__ == "__main__":
    main()
