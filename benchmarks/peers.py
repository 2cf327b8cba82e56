"""Measure HQQ, which quantizes without speech, beside folders of ours: KL and words on the same recordings, bits per weight.

    pip install hqq==0.2.8.post1 termcolor
    python benchmarks/peers.py --speech DIR --bits 2 --group-size 128 --folders tuning/q2 tuning/tiny.en-2bit [--limit 40]

DIR holds the dev sets. The folders are quantized folders of one original whose head is in floating point; HQQ quantizes the same layers by
its own code, with its defaults (groups along the inputs, real zero points, its optimizer). It stores two float16 numbers for a group, so
its weights are slightly larger at the same group size. Systems are measured one after the other, on one thread.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, SETS, machine, script_parser

from sottovoce import api
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.cli.console import quiet_libraries
from sottovoce.data.dataset import DataSet
from sottovoce.data.load import load_data
from sottovoce.evaluation.wer import score_transcripts
from sottovoce.fitting.speech import held_out_speech
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.pipeline import quantize_model
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.json_lines import append_lines
from sottovoce.system.progress import silent

FLOAT16_BITS = 16


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--folders", type=Path, nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=40, help="utterances of each set")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.jsonl")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    manifest = read_manifest(arguments.folders[0])
    plan, original = manifest.plan, api.load(manifest.source)
    layers = [layer.name for layer in plan.layers]
    hqq_bits = arguments.bits + 2 * FLOAT16_BITS / arguments.group_size
    plain = Recipe(method=METHODS["rtn"], format=manifest.recipe.format, head_bits=manifest.recipe.head_bits)
    systems: dict[str, tuple[float, Any]] = {
        "original": (FLOAT16_BITS, lambda: original),
        f"HQQ, groups of {arguments.group_size}": (hqq_bits, lambda: hqq(api.load(manifest.source), layers, arguments)),
        "RTN": (plan.bits_per_weight, lambda: quantize_model(original, plan, plain, None).model),
    }
    for folder in arguments.folders:
        own = read_manifest(folder)
        title = "FADE" if own.tune is None else "FADE, tuned"
        systems[f"{title} ({folder.name})"] = (own.plan.bits_per_weight, lambda folder=folder: api.load(folder))
    sets = {name: load_data(arguments.speech / name, at_most=arguments.limit) for name in SETS}
    taught = {name: held_out_speech(original, data, language=None, progress=silent) for name, data in sets.items()}
    for name, (bits, make) in systems.items():
        row = {"system": name, "bits": arguments.bits, "bits_per_weight": round(bits, 3), "limit": arguments.limit, "sets": {}}
        model = make()
        for data in SETS:
            row["sets"][data] = words(model, sets[data])
            if model is not original:
                row["sets"][data]["kl"] = round(taught[data].mean_divergence(model), 4)
        row |= {"hqq": version("hqq"), **machine()}
        append_lines(arguments.out, [row])
        print(name, json.dumps(row["sets"]), flush=True)


def hqq(model: SpeechModel, layers: list[str], arguments: argparse.Namespace) -> SpeechModel:
    """Put what HQQ makes of the weights of `layers` in their place."""
    from hqq.core.quantize import Quantizer

    for name in layers:
        weight = model.module(name).weight
        codes, meta = Quantizer.quantize(
            weight.data, nbits=arguments.bits, group_size=arguments.group_size, axis=1, device="cpu", compute_dtype=torch.float32
        )
        meta["compute_dtype"] = torch.float32
        weight.data = Quantizer.dequantize(codes, meta).reshape(weight.shape)
    return model


def words(model: SpeechModel, data: DataSet) -> dict[str, Any]:
    """The words of a model on a set."""
    score = score_transcripts(api.evaluate(model, data).transcription.transcripts)
    return {
        "words": score.words,
        "wer_percent": round(100 * score.wer, 2),
        "capped_wer_percent": round(100 * score.capped_wer, 2),
        "loops": len(score.looped),
    }


if __name__ == "__main__":
    main()
