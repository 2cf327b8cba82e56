"""Load: 5,000 short utterances in one process with flat memory, and a recording of two hours.

    python benchmarks/reliability.py --work SCRATCH [--out benchmarks/results/reliability.json]

Speech is synthesised (`sottovoce.demo.commands`), the model is `bundled:moonshine-micro` at 4 bits.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import soundfile

from sottovoce import api
from sottovoce.audio import SAMPLE_RATE
from sottovoce.core.grid import Grid
from sottovoce.data import load_data
from sottovoce.demo.commands import make_commands
from sottovoce.recipe import Recipe, method_named

UTTERANCES, SPOKEN, HOURS = 5000, 200, 2


def resident_mb() -> float:
    """Memory of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmRSS in /proc/self/status")


def many(folder: Path, work: Path) -> dict[str, float]:
    """Evaluate thousands of utterances; memory after each batch, and the slope of its second half."""
    spoken = load_data(make_commands(work / "test", "test", SPOKEN))
    rows = [
        {"id": f"{i:05d}", "audio": str(u.audio), "text": u.text}
        for i in range(UTTERANCES)
        for u in [spoken.utterances[i % SPOKEN]]
    ]
    manifest = work / "many.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: list[tuple[int, float]] = []

    def watch(_doing: str, done: int, _total: int) -> None:
        seen.append((done, resident_mb()))

    began = time.perf_counter()
    result = api.evaluate(folder, manifest, progress=watch)
    half = seen[len(seen) // 2 :]
    slope = float(np.polyfit([done for done, _ in half], [mb for _, mb in half], 1)[0])
    return {
        "utterances": len(result.transcription.transcripts),
        "audio_s": result.transcription.audio_s,
        "seconds": time.perf_counter() - began,
        "wer_percent": 100 * result.score.wer,
        "resident_mb_after_a_tenth": seen[len(seen) // 10][1],
        "resident_mb_at_the_end": seen[-1][1],
        "slope_kb_per_utterance": 1024 * slope,
    }


def long(folder: Path, work: Path) -> dict[str, float]:
    """One recording of hours, commands one after the other with pauses."""
    spoken = [u.samples() for u in load_data(make_commands(work / "test", "test", SPOKEN))]
    file, pause = work / "long.flac", np.zeros(SAMPLE_RATE // 2, np.float32)
    with soundfile.SoundFile(file, "w", SAMPLE_RATE, 1) as out:
        written, i = 0, 0
        while written < HOURS * 3600 * SAMPLE_RATE:
            for piece in (spoken[i % SPOKEN], pause):
                out.write(piece)
                written += len(piece)
            i += 1
    before, began = resident_mb(), time.perf_counter()
    heard = api.transcribe(folder, [file])
    (transcript,) = heard.transcripts
    return {
        "hours": transcript.duration_s / 3600,
        "pieces": transcript.pieces,
        "words": len(transcript.text.split()),
        "seconds": time.perf_counter() - began,
        "resident_mb_added": resident_mb() - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reliability.json"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    folder = args.work / "micro-4bit"
    recipe = Recipe(method=method_named("rtn"), grid=Grid(bits=4, group_size=32))
    api.quantize("bundled:moonshine-micro", folder, recipe=recipe, overwrite=True)
    results = {"many": many(folder, args.work), "long": long(folder, args.work)}
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
