"""Measure the words of a quantized folder beside its original's, on the dev sets, in one runtime or several.

    python benchmarks/words.py --speech DIR --against bundled:base --name base-mlx3 FOLDER [--runtimes torch mlx] [--clips 7]

FOLDER is what `sottovoce quantize` wrote; other runtimes than torch get its export, made beside it. `--clips`: the first so many utterances
of each set (default: all). Capped: an utterance counts at most as many errors as it has words. Every difference is paired by utterance,
with a 95 % bootstrap interval. `same`: utterances with the very words of the first runtime. What OUT/NAME.json has is not measured again.
"""

import json
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, SETS, exported, machine, paired, script_parser, write_json

from sottovoce import api
from sottovoce.backends.agreement import agree
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.cli.console import quiet_libraries
from sottovoce.data.dataset import DataSet
from sottovoce.data.load import load_data
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_transcripts
from sottovoce.system.plain_data import to_plain


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--against", required=True, help="the original")
    parser.add_argument("--name", required=True, help="of the result")
    parser.add_argument("--runtimes", nargs="+", default=["torch"])
    parser.add_argument("--clips", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "words")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    out, manifest = arguments.out / f"{arguments.name}.json", read_manifest(arguments.folder)
    report = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"sets": {}}
    report |= {
        "against": arguments.against,
        "recipe": to_plain(manifest.recipe),
        "target": manifest.plan.target,
        "calibration_utterances": len(manifest.calibration.utterances) if manifest.calibration else 0,
        "bytes": (arguments.folder / WEIGHTS).stat().st_size,
        "threads": arguments.threads,
        **machine(),
    }
    systems = {runtime: exported(arguments.folder, runtime) for runtime in arguments.runtimes}
    for name in SETS:
        if set(report["sets"].get(name, {}).get("systems", {})) != {"original", *systems}:
            data = load_data(arguments.speech / name, at_most=arguments.clips)
            report["sets"][name] = compared(data, {"original": arguments.against, **systems})
            write_json(out, report)
            print(name, report["sets"][name], flush=True)


def compared(data: DataSet, systems: dict[str, Path | str]) -> dict[str, Any]:
    """Score every system on `data`, beside the first, and count the texts that are those of the second."""
    heard = {system: api.evaluate(model, data).transcription.transcripts for system, model in systems.items()}
    original, simulated = heard["original"], list(heard.values())[1]
    return {"utterances": len(data), "systems": {system: score(texts, original, simulated) for system, texts in heard.items()}}


def score(texts: tuple[Transcript, ...], original: tuple[Transcript, ...], simulated: tuple[Transcript, ...]) -> dict[str, Any]:
    found = score_transcripts(texts)
    return {
        "words": found.words,
        "wer_percent": 100 * found.wer,
        "capped_wer_percent": 100 * found.capped_wer,
        "looped": list(found.looped),
        **({} if texts is original else {"against_original": paired(texts, original)}),
        **({} if texts is original or texts is simulated else {"same": agree(texts, simulated).equal}),
    }


if __name__ == "__main__":
    main()
