"""The accuracy table in Markdown, from the results alone.

    python benchmarks/table.py [benchmarks/results/accuracy.jsonl]

Word error rates in percent and mean divergence in nats; mean and standard deviation over the seeds that were run.
"""

import json
import statistics
import sys
from pathlib import Path

NAMES = {
    "none": "full precision",
    "rtn": "RTN",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "gptq-tuned": "GPTQ, FADE's options",
    "qep": "GPTQ + QEP(0.5)",
    "qep-tuned": "GPTQ + QEP(0.5), FADE's options",
    "fade-diagnostic": "FADE, diagnostic",
    "fade": "FADE, cross-fit",
}


def main() -> None:
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/accuracy.jsonl")
    rows = {row["cell"]: row for row in map(json.loads, file.read_text().splitlines())}
    sets = list(next(iter(rows.values()))["sets"])
    print("| bits | method | seeds | " + " | ".join(f"{name} WER | KL | loops" for name in sets) + " |")
    print("|---|---|---|" + "---:|---:|---:|" * len(sets))
    keys = {(row.get("bits", 16), list(NAMES).index(row["method"])) for row in rows.values()}
    for bits, index in sorted(keys, key=lambda key: (-key[0], key[1])):
        method = list(NAMES)[index]
        cells = [row for row in rows.values() if row.get("bits", 16) == bits and row["method"] == method]
        figures = []
        for name in sets:
            results = [cell["sets"][name] for cell in cells]
            figures += [
                _spread([r["wer_percent"] for r in results], 1),
                _spread([r["mean_kl"] for r in results], 3),
                _spread([float(len(r["looped"])) for r in results], 0),
            ]
        print(f"| {bits} | {NAMES[method]} | {len(cells)} | " + " | ".join(figures) + " |")


def _spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{max(digits, 1)}f}"


if __name__ == "__main__":
    main()
