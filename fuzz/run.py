"""Coverage-guided fuzzing of everything that reads bytes from strangers.

    pip install atheris
    python fuzz/run.py --runs 200000 [--only audio] [--out benchmarks/results/fuzz.json]

Each target runs in a process of its own, from the seeds in `targets.py` and the inputs kept in `fuzz/corpus/TARGET/`. An undocumented
error, a crash, more than 2 GB of memory or ten seconds for one input ends it; the input is kept as `fuzz/corpus/TARGET/found-*`, which
the test suite runs.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
MEMORY_MB, SECONDS, LONGEST = 2048, 10, 1 << 16


def fuzz_one(name: str, runs: int) -> None:
    """In this process, until a finding or `runs` executions."""
    import atheris

    with atheris.instrument_imports(include=["sottovoce.data", "sottovoce.system.plain_data", "sottovoce.evaluation",
                                             "sottovoce.bench.plan", "sottovoce.models.ctranslate2", "sottovoce.checkpoint",
                                             "sottovoce.core.packing", "sottovoce.core",
                                             "sottovoce.quantization"]):  # fmt: skip
        sys.path.insert(0, str(HERE))
        import targets
    corpus = HERE / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    executed = accepted = 0

    def one(data: bytes) -> None:
        nonlocal executed, accepted
        executed += 1
        accepted += targets.check(name, data)
        if executed == runs:  # libFuzzer leaves without Python's farewell
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(json.dumps({"executions": executed, "accepted": accepted, "peak_memory_mb": peak}), flush=True)

    with tempfile.TemporaryDirectory() as growing:
        for i, seed in enumerate(targets.SEEDS[name]()):
            (Path(growing) / f"seed-{i}").write_bytes(seed)
        options = [f"-runs={runs}", f"-max_len={LONGEST}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY_MB}", "-seed=1"]
        options += [f"-artifact_prefix={corpus}/found-", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *options, growing, str(corpus)], one)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200_000)
    parser.add_argument("--only", action="append")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.one:
        fuzz_one(args.one, args.runs)
        return
    sys.path.insert(0, str(HERE))
    import targets

    results, bad = {}, 0
    for name in args.only or targets.TARGETS:
        began = time.monotonic()
        command = [sys.executable, __file__, "--one", name, "--runs", str(args.runs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        counted = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"executions"')]
        seconds = round(time.monotonic() - began, 1)
        results[name] = {**(counted[0] if counted else {}), "seconds": seconds, "findings": int(done.returncode != 0)}
        print(name, results[name], flush=True)
        if done.returncode:
            bad += 1
            print(done.stderr[-3000:], flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
