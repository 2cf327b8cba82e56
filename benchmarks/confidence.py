"""Measure how far quantization spoils word confidences, and how far scaling repairs them, from the cells of a bench.

    python benchmarks/confidence.py RESULTS [--model bundled:tiny.en] [--bits 3]

RESULTS is the folder of a bench that was run on this machine: confidences need its transcripts, which are in RESULTS/cells alone. For
the original, and for every method and seed, the words of all data sets together (without loops) are fitted on one half of the
utterances, chosen by a fixed shuffle, and measured on the other. Writes `benchmarks/results/confidence.json`.
"""

import json
import random
from dataclasses import asdict
from pathlib import Path

from common import RESULTS, script_parser

from sottovoce.bench.cells import TORCH, CellStore
from sottovoce.bench.collect import finished_evaluations
from sottovoce.evaluation.confidence import fit_to_transcripts
from sottovoce.evaluation.recognizer import TorchRecognizer
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.models.load import load_model
from sottovoce.quantization.recipe import FLOAT_BITS


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("results")
    parser.add_argument("--model", default="bundled:tiny.en")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "confidence.json")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    by_system: dict[tuple[str, int], list[Transcript]] = {}
    found = finished_evaluations(CellStore(Path(arguments.results)).all())
    for run in sorted(found, key=lambda run: (run.method, run.bits, run.data, run.seed or 0)):
        if run.model == arguments.model and run.runtime == TORCH and run.bits in (FLOAT_BITS, arguments.bits):
            by_system.setdefault((run.method, run.seed or 0), []).extend(run.transcripts)
    if not by_system:
        parser.error(f"{arguments.results}/cells holds no transcripts of {arguments.model}; run the bench there first")
    rows = []
    for (method, draw), transcripts in by_system.items():
        scored = sorted((t for t in transcripts if t.reference), key=lambda transcript: transcript.id)
        random.Random(0).shuffle(scored)  # noqa: S311 - a reproducible shuffle, no secret
        fitted = fit_to_transcripts(TorchRecognizer(model), scored, [i % 2 for i in range(len(scored))])
        rows.append({"method": method, "draw": draw, **asdict(fitted)})
        print(
            f"{method} {draw}: right {fitted.raw_metrics.accuracy:.3f}",
            *(
                f"{name} ECE {trust.expected_calibration_error:.3f} NCE {trust.normalized_cross_entropy:.3f}"
                for name, trust in (
                    ("raw", fitted.raw_metrics),
                    ("temperature", fitted.temperature_metrics),
                    ("Platt", fitted.platt_metrics),
                )
            ),
        )
    content = {"model": arguments.model, "bits": arguments.bits, "systems": rows}
    text = json.dumps(content, indent=1).replace("NaN", "null")
    arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
