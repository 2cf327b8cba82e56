"""Measure every number format in the runtimes that execute it: size, processor time of encoder and decoder, memory, words.

    python benchmarks/format_speeds.py --speech DIR --work SCRATCH [--model bundled:base] [--backends whisper.cpp transcribe.cpp]
        [--formats q4_0 q4_k ...] [--prepare]

DIR holds the sets `dev-librispeech`, `dev-accented` and `dev-home`. Every weight is rounded to one format (RTN), head and token embedding
included, and written to one file; `float16` is the original. Each file runs the first two recordings of the first set and the first of the
others, one at a time, in a process of its own, on one thread, after a warm-up. Seconds are processor time (of transcribe.cpp: those that it
reports), the least of the repeats: other work on the machine changes them little. Memory: peak of the process above what it held before the
model was loaded. Words are compared with those of the same values in PyTorch. What is finished in SCRATCH is not made or measured again.
`--prepare` makes the files and PyTorch's words, and measures nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, machine, script_parser, write_json
from runtimes import recognized

from sottovoce import api
from sottovoce.backends.export import export
from sottovoce.backends.formats import known_formats
from sottovoce.backends.registry import backend_named, open_runtime
from sottovoce.backends.source import Source
from sottovoce.core.formats import format_named
from sottovoce.data.load import load_data
from sottovoce.errors import SottovoceError
from sottovoce.evaluation.normalize import normalize
from sottovoce.evaluation.recognizer import TorchRecognizer
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.memory import memory_bytes, peak_memory_bytes

CLIPS = {"dev-librispeech": 2, "dev-accented": 1, "dev-home": 1}
FLOAT = "float16"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="bundled:base")
    parser.add_argument("--backends", nargs="+", default=["whisper.cpp", "transcribe.cpp"])
    parser.add_argument("--formats", nargs="+", help="besides float16 (default: all)")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "format_speeds.json")
    parser.add_argument("--worker", nargs=2, metavar=("BACKEND", "FORMAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.worker:
        _measure(arguments, *arguments.worker)
        return
    formats = [FLOAT, *(known.name for known in known_formats() if not known.name.startswith("stochastic"))]
    written = []
    for name in formats:
        if name != FLOAT and arguments.formats and name not in arguments.formats:
            continue
        if holders := [backend for backend in arguments.backends if _written(arguments, backend, name) is not None]:
            written += [(backend, name) for backend in holders]
            _pytorch_words(arguments, name)  # here, so that the process that is measured loads no PyTorch model
            print(f"{name}: ready", flush=True)
    if arguments.prepare:
        return
    rows = []
    for backend, name in written:
        file = _result_file(arguments, backend, name)
        if not file.is_file():
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--worker", backend, name], check=True)
        rows.append(json.loads(file.read_text()))
        print(json.dumps(rows[-1]), flush=True)
    found = {
        "model": arguments.model,
        "clips": sum(CLIPS.values()),
        "threads": 1,
        **machine(),
        "systems": rows,
    }
    write_json(arguments.out, found)


def _result_file(arguments: argparse.Namespace, backend: str, name: str) -> Path:
    return Path(arguments.work) / f"{name}.{backend}.json"


def _recordings(arguments: argparse.Namespace) -> list[np.ndarray]:
    return [u.samples() for name, clips in CLIPS.items() for u in load_data(arguments.speech / name, at_most=clips)]


def _written(arguments: argparse.Namespace, backend: str, name: str) -> Path | None:
    """Return the file of a format, made if it is not there; None where the backend does not hold the format as it is."""
    file = arguments.work / f"{name}.{backend}"
    if file.exists():
        return Path(file)
    if name == FLOAT:
        write = backend_named(backend).write
        assert write is not None
        write(Source(api.load(arguments.model), {}), file, "")
        return Path(file)
    holders = [holder for known in known_formats() if known.name == name for holder in known.holders]
    if not any(holder.backend == backend and not holder.widened for holder in holders):
        return None
    folder = arguments.work / f"{name}.folder"
    try:
        if not folder.is_dir():
            recipe = Recipe(method=METHODS["rtn"], format=format_named(name), head_bits=None)
            api.quantize(arguments.model, folder, recipe=recipe, target=backend)
        export(folder, backend, file, verify=False)
    except SottovoceError as exc:  # rows that do not divide
        print(f"{name} in {backend}: {exc}", flush=True)
        return None
    return Path(file)


def _pytorch_words(arguments: argparse.Namespace, name: str) -> list[str]:
    file = arguments.work / f"{name}.words.json"
    if not file.is_file():
        recognizer = TorchRecognizer(api.load(arguments.model if name == FLOAT else arguments.work / f"{name}.folder"))
        texts = [recognizer.recognize([clip], "en").recognitions[0].text for clip in _recordings(arguments)]
        file.write_text(json.dumps(texts))
    return [str(text) for text in json.loads(file.read_text())]


def _measure(arguments: argparse.Namespace, backend: str, name: str) -> None:
    before = memory_bytes()
    time.perf_counter = time.process_time  # recognizers time their parts with it
    recognizer: Any = open_runtime(backend, str(arguments.work / f"{name}.{backend}"), 1)
    clips = _recordings(arguments)
    recognizer.recognize(clips[:1], "en")
    runs = [[recognized(recognizer, clip, 1, "en") for clip in clips] for _ in range(arguments.repeats)]
    texts = [batch.recognitions[0].text for batch in runs[-1]]
    row = {
        "format": name,
        "backend": backend,
        "bytes": recognizer.stored_bytes,
        "encoder_s": min(sum(batch.encoder_s for batch in run) for run in runs),
        "decoder_s": min(sum(batch.decoder_s for batch in run) for run in runs),
        "memory_bytes": peak_memory_bytes() - before,
        "same_words_as_pytorch": sum(normalize(a) == normalize(b) for a, b in zip(texts, _pytorch_words(arguments, name), strict=True)),
    }
    _result_file(arguments, backend, name).write_text(json.dumps(row))


if __name__ == "__main__":
    main()
