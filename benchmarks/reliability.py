"""Measure memory under load, and check that runs that were killed resume to the same bytes.

    python benchmarks/reliability.py --work SCRATCH [--parts many,long,kills,tests] [--out benchmarks/results/reliability.json]

Speech is synthesised (`sottovoce.demo`). Load: `bundled:moonshine-base` at 4 bits. Crashes: `sottovoce quantize bundled:tiny.en`, killed
with SIGKILL at random moments and gone on with; every file's sha256 is compared with an undisturbed run's. Tests: the thorough form of
the tests of crashes and of integrity, on a tiny model.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import soundfile
from common import RESULTS, script_parser, write_json

from sottovoce import api
from sottovoce.core.affine import Affine
from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.data.load import load_data
from sottovoce.demo import make_speech
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.atomic_files import sha256
from sottovoce.system.memory import memory_bytes

UTTERANCES, HOURS, KILLS = 5000, 2, 5


def many(folder: Path, work: Path) -> dict[str, float]:
    """Evaluate thousands of utterances; memory after each batch, and the slope of its second half."""
    spoken = load_data(make_speech(work / "test", "test"))
    rows = [
        {"id": f"{i:05d}", "audio": str(u.audio), "text": u.text} for i in range(UTTERANCES) for u in [spoken.utterances[i % len(spoken)]]
    ]
    manifest = work / "many.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: list[tuple[int, float]] = []

    def watch(_kind: str, done: int, _total: int, _detail: str = "") -> None:
        seen.append((done, memory_bytes() / 2**20))

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
    """One recording of hours, sentences one after the other with pauses."""
    spoken = [u.samples() for u in load_data(make_speech(work / "test", "test"))]
    file, pause = work / "long.flac", np.zeros(SAMPLE_RATE // 2, np.float32)
    with soundfile.SoundFile(file, "w", SAMPLE_RATE, 1) as out:
        written, i = 0, 0
        while written < HOURS * 3600 * SAMPLE_RATE:
            for piece in (spoken[i % len(spoken)], pause):
                out.write(piece)
                written += len(piece)
            i += 1
    before, began = memory_bytes() / 2**20, time.perf_counter()
    heard = api.transcribe(folder, [file])
    (transcript,) = heard.transcripts
    return {
        "hours": transcript.duration_s / 3600,
        "pieces": transcript.pieces,
        "words": len(transcript.text.split()),
        "seconds": time.perf_counter() - began,
        "resident_mb_added": memory_bytes() / 2**20 - before,
    }


def kills(work: Path) -> dict[str, object]:
    """Quantize tiny.en, kill it at a random moment, resume it, and compare the bytes; several times."""
    work = work / "kills"
    shutil.rmtree(work, ignore_errors=True)
    speech = make_speech(work / "speech", "calibration")

    def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sottovoce", "quantize", "bundled:tiny.en", str(out), "--threads", "1"]
        command += ["--calibration", str(speech), "--utterances", "16", *more]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def contents(out: Path) -> dict[str, str]:
        return {file.name: sha256(file) for file in sorted(out.iterdir())}

    began = time.perf_counter()
    if start(work / "whole").wait() != 0:
        raise SystemExit("the undisturbed run failed")
    whole_s, whole = time.perf_counter() - began, contents(work / "whole")
    moments, killed = random.Random(1), []  # noqa: S311 - moments to kill at, no secret
    for trial in range(KILLS):
        out = work / f"killed-{trial}"
        process = start(out)
        after = whole_s * moments.uniform(0.1, 0.9)
        time.sleep(after)
        process.kill()
        if process.wait() == 0:
            raise SystemExit(f"kill {trial}: it was done before")
        solved = len(list((work / f".{out.name}.unfinished").glob("layer-*.safetensors")))
        resumed = time.perf_counter()
        if start(out, "--resume").wait() != 0:
            raise SystemExit(f"kill {trial}: --resume failed")
        same = contents(out) == whole
        killed.append({"after_s": after, "layers_kept": solved, "resume_s": time.perf_counter() - resumed, "same_bytes": same})
        print(killed[-1], flush=True)
    return {"undisturbed_s": whole_s, "files": len(whole), "kills": killed}


def tests(work: Path) -> dict[str, object]:
    """Run the tests with 50 kills at random moments, one after every layer, and a flip in every JSON byte and in 2,000 of the weights."""
    report = work / "tests.xml"
    chosen = ["tests/checkpoint/test_resume.py", "tests/checkpoint/test_verify.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *chosen]
    environment = os.environ | {"SOTTOVOCE_KILLS": "50", "SOTTOVOCE_THOROUGH": "1"}
    if subprocess.run(command, env=environment, check=False, cwd=Path(__file__).parent.parent).returncode != 0:
        raise SystemExit("a test failed")
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - written by the line above
    counted = {p.get("name"): int(p.get("value") or 0) for case in cases for p in case.iter("property")}
    return {
        "passed": len(cases),
        "seconds": sum(float(case.get("time") or 0) for case in cases),
        "kills_at_borders": sum("a_layers_border" in (case.get("name") or "") for case in cases),
        "kills_at_random_moments": counted["kills"],
        "flipped_bytes_found": counted["flips"],
    }


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--parts", default="many,long,kills,tests", help="which, with commas; the others' figures stay")
    parser.add_argument("--out", type=Path, default=RESULTS / "reliability.json")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    folder = args.work / "moonshine-4bit"
    parts: dict[str, Callable[[], Mapping[str, object]]] = {
        "many": lambda: many(folder, args.work),
        "long": lambda: long(folder, args.work),
        "kills": lambda: kills(args.work),
        "tests": lambda: tests(args.work),
    }
    wanted = args.parts.split(",")
    if unknown := set(wanted) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    if {"many", "long"} & set(wanted):
        recipe = Recipe(method=method_named("rtn"), format=Affine(bits=4, group_size=32))
        api.quantize("bundled:moonshine-base", folder, recipe=recipe, overwrite=True)
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in wanted:
        results[part] = parts[part]()
        write_json(args.out, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
