"""Measure short encoder contexts: seconds by the length of a clip, and what they do to the words.

    python benchmarks/contexts.py --speech DIR --work SCRATCH [--folder FOLDER] [--context +16] [--seconds 1 3 5 8 12 20 29]

DIR/dev-* hold the speech. A clip of so many seconds is cut from utterances of one set, one after the other with a pause of 0.3 s between
them. FOLDER is a quantized folder of `bundled:MODEL`; without one, MODEL is rounded to 4 bits (symmetric, groups of 32), which no tuning
prepared for short contexts. It runs in ONNX Runtime and whisper.cpp, with whole windows and with CONTEXT, beside the original in ONNX
Runtime (float32), Moonshine base as its wheel brings it and, where the package ctranslate2 is installed, faster-whisper (int8). First
every system transcribes all clips in a process of its own, for its words and memory (peak of the process above what it held before the
model was loaded). Then one process holds all systems, and each clip goes through one after the other, so that other work on the machine
slows all of them. Seconds: means over the clips of one length, of the least of the repeats for each clip; `cpu_s` is time of the
processor, which other work on the machine changes least; with --clock, times of the clock stand beside it. whisper.cpp tells no times of
its parts: its encoder runs once more, alone. Words: of every system with those of the original, and of a short context with those of the
same file with whole windows.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import MODELS, RESULTS, SETS, machine, script_parser, write_json
from runtimes import FasterWhisper, ShippedMoonshine

from sottovoce import api
from sottovoce.backends.export import export
from sottovoce.backends.onnx_runtime.writer import write_onnx
from sottovoce.backends.registry import open_runtime
from sottovoce.backends.source import Source
from sottovoce.bench.figures import STYLES, save_figure
from sottovoce.checkpoint.manifest import read_manifest
from sottovoce.core.formats import format_named
from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.data.load import load_data
from sottovoce.errors import SottovoceError
from sottovoce.evaluation.context import FULL, Context, as_context
from sottovoce.evaluation.failures import is_loop
from sottovoce.evaluation.normalize import normalize
from sottovoce.evaluation.recognizer import RecognitionBatch, window_of
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.memory import memory_bytes, peak_memory_bytes
from sottovoce.system.plain_data import to_plain

PAUSE_S = 0.3
UNTUNED = "+64"  # the context of a folder that was tuned for none
ORIGINAL = "float32, ONNX Runtime"
MOONSHINE = "Moonshine base, int8 weights as shipped, ONNX Runtime"  # an encoder that ends with the clip by design
# Name: what is run (another bundled model by its name), in which runtime, and whether with the short context.
SYSTEMS: dict[str, tuple[str, str, bool]] = {
    ORIGINAL: ("original", "onnxruntime", False),
    "quantized, ONNX Runtime": ("quantized", "onnxruntime", False),
    "quantized, ONNX Runtime, short": ("quantized", "onnxruntime", True),
    "quantized, whisper.cpp": ("quantized", "whisper.cpp", False),
    "quantized, whisper.cpp, short": ("quantized", "whisper.cpp", True),
    "int8, faster-whisper": ("original", "ct2-int8", False),
    MOONSHINE: ("moonshine-base", "shipped", False),
}


def main() -> None:
    """Measure, and write the summary, and its figure if one is asked for."""
    parser = script_parser(__doc__)
    parser.add_argument("--speech", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path, help="for files and unfinished measurements")
    parser.add_argument("--model", default="tiny.en", help="the bundled model that FOLDER was made of")
    parser.add_argument("--folder", type=Path, help="a quantized folder that was tuned for short contexts")
    parser.add_argument("--context", default="auto", help="auto: as FOLDER was tuned, or +64 if it was not")
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 3, 5, 8, 12, 20, 29])
    parser.add_argument("--clips", type=int, default=3, help="of each length, from the sets in turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "contexts.json")
    parser.add_argument("--figure", type=Path, help="an SVG file: time by the length of a clip")
    parser.add_argument("--clock", action="store_true", help="keep times of the clock too, encoder and decoder apart: for a quiet machine")
    parser.add_argument("--summary-only", action="store_true", help="of what a stopped run had measured")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.worker:
        _measure(arguments, arguments.worker)
        return
    if not arguments.summary_only:
        _measure_all(arguments)
    summary = _summary(arguments)
    write_json(arguments.out, summary)
    if arguments.figure:
        _draw(summary, arguments.figure)


def _measure_all(arguments: argparse.Namespace) -> None:
    """Make the files, and measure what is not measured yet."""
    for name, (_, runtime, _) in SYSTEMS.items():
        if runtime == "ct2-int8" and importlib.util.find_spec("ctranslate2") is None:
            print(f"{name}: left out, ctranslate2 is not installed", flush=True)
            continue
        try:
            _file_of(arguments, name)
        except SottovoceError as exc:  # a folder whose format one of the runtimes does not hold
            print(f"{name}: left out, {exc}", flush=True)
            continue
        if not _result_file(arguments, name).is_file():
            print(name, flush=True)
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--worker", name], check=True)
    print("times", flush=True)
    _time(arguments)


def _result_file(arguments: argparse.Namespace, name: str) -> Path:
    return Path(arguments.work / f"{name.replace(' ', '_').replace(',', '')}.json")


def _timing_file(arguments: argparse.Namespace) -> Path:
    return Path(arguments.work / "times.jsonl")


def _quantized_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder that is measured; plain rounding is made once."""
    if arguments.folder is not None:
        return Path(arguments.folder)
    folder = Path(arguments.work / "rounded")
    if not folder.is_dir():
        recipe = Recipe(method=method_named("rtn"), format=format_named("q4_0"))
        api.quantize(f"bundled:{arguments.model}", folder, recipe=recipe, target="whisper.cpp")
    return folder


def _file_of(arguments: argparse.Namespace, name: str) -> Path | None:
    """Return the file or folder that a system runs; make it if it is not there. None: the runtime takes the original as it lies."""
    what, runtime, _ = SYSTEMS[name]
    if runtime == "ct2-int8":
        return None
    file = Path(arguments.work / f"{what}.{'bin' if runtime == 'whisper.cpp' else 'onnx'}")
    if file.exists():
        return file
    if what == "quantized":
        export(_quantized_folder(arguments), runtime, file, verify=False)
    else:
        write_onnx(Source(api.load(f"bundled:{arguments.model if what == 'original' else what}"), {}), file)
    return file


def _clips(arguments: argparse.Namespace) -> dict[float, list[np.ndarray]]:
    """Return the clips of each length: utterances of one set with pauses, cut at that length, each beginning where the last one ended."""
    streams = [iter(load_data(arguments.speech / name).utterances) for name in SETS]
    pause = np.zeros(int(PAUSE_S * SAMPLE_RATE), np.float32)
    clips: dict[float, list[np.ndarray]] = {}
    for seconds in arguments.seconds:
        clips[seconds] = []
        for number in range(arguments.clips):
            parts, length, wanted = list[np.ndarray](), 0, int(seconds * SAMPLE_RATE)
            while length < wanted:
                parts += [next(streams[number % len(streams)]).samples(), pause]
                length = sum(map(len, parts))
            clips[seconds].append(np.concatenate(parts)[:wanted])
    return clips


def _opened(arguments: argparse.Namespace, name: str) -> tuple[Any, Context]:
    """Open a system, and say what context it has."""
    _, runtime, short = SYSTEMS[name]
    file = _file_of(arguments, name)
    if file is None:
        return FasterWhisper(arguments.model, "int8", arguments.threads, arguments.work), FULL
    if runtime == "shipped":
        return ShippedMoonshine(file, arguments.threads), FULL
    recognizer = open_runtime(runtime, file, arguments.threads)
    if not short:
        return recognizer, FULL
    tuned = read_manifest(_quantized_folder(arguments)).short_context
    asked = arguments.context if arguments.context != "auto" else UNTUNED if tuned is None else f"+{tuned.margin}"
    return recognizer, as_context(asked).resolve(window_of(recognizer), name)


def _measure(arguments: argparse.Namespace, name: str) -> None:
    """Transcribe all clips by one system in this process; write words and memory to its file."""
    clips, before = _clips(arguments), memory_bytes()
    recognizer, context = _opened(arguments, name)
    texts = [_run(recognizer, clip, context).recognitions[0].text for recordings in clips.values() for clip in recordings]
    found = {
        "context": str(context),
        "bytes": recognizer.stored_bytes,
        "memory_bytes": peak_memory_bytes() - before,
        "texts": texts,
    }
    _result_file(arguments, name).write_text(json.dumps(found), encoding="utf-8")


def _time(arguments: argparse.Namespace) -> None:
    """Time all systems in turn, clip by clip; append the seconds of each clip to the file, so that a stopped run goes on."""
    file = _timing_file(arguments)
    done = {(row["length"], row["clip"]) for row in _times(arguments)}
    clips = {(f"{s:g}", number): clip for s, own in _clips(arguments).items() for number, clip in enumerate(own)}
    missing = sorted((place for place in clips if place not in done), key=lambda place: place[1])  # one of each length, then the next
    if not missing:
        return
    opened = {name: _opened(arguments, name) for name in SYSTEMS if _result_file(arguments, name).is_file()}
    for recognizer, context in opened.values():
        _run(recognizer, clips[missing[0]], context)  # the first run prepares memory
    for length, number in missing:
        found = {}
        for name, (recognizer, context) in opened.items():
            runs = [_timed(recognizer, clips[length, number], context, arguments.threads) for _ in range(arguments.repeats)]
            found[name] = {key: min(run[key] for run in runs) for key in runs[0]}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"length": length, "clip": number, "systems": found}) + "\n")


def _times(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Read the times that are there."""
    file = _timing_file(arguments)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _run(recognizer: Any, clip: np.ndarray, context: Context) -> RecognitionBatch:
    positions = None if context == FULL else context.of(len(clip), window_of(recognizer))
    found: RecognitionBatch = recognizer.recognize([clip], None, **({} if positions is None else {"contexts": [positions]}))
    return found


def _timed(recognizer: Any, clip: np.ndarray, context: Context, threads: int) -> dict[str, float]:
    """Return the seconds of the processor and of the clock; those of encoder and decoder where they are told apart."""
    began = time.process_time()
    batch = _run(recognizer, clip, context)
    found = {"cpu_s": time.process_time() - began, "whole_s": batch.encoder_s + batch.decoder_s}
    if not hasattr(recognizer, "_calls"):
        return {**found, "encoder_s": batch.encoder_s, "decoder_s": batch.decoder_s}
    began = time.perf_counter()
    recognizer._calls.whisper_encode(recognizer._context, 0, threads)
    return {**found, "encoder_s": time.perf_counter() - began}


def _summary(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what all systems took and wrote, with the machine that they ran on."""
    found = {name: json.loads(file.read_text()) for name in SYSTEMS if (file := _result_file(arguments, name)).is_file()}
    texts = {name: [normalize(text, "en") for text in one["texts"]] for name, one in found.items()}
    times = _times(arguments)
    systems = {}
    for name, one in found.items():
        lengths = {}
        for length in dict.fromkeys(row["length"] for row in times):
            own = [row["systems"][name] for row in times if row["length"] == length]
            kept = [key for key in own[0] if arguments.clock or key == "cpu_s"]
            lengths[length] = {key: round(statistics.mean(clip[key] for clip in own), 4) for key in kept}
        whole = name.removesuffix(", short")
        systems[name] = {
            "context": "the clip" if name == MOONSHINE else one["context"],
            "bytes": one["bytes"],
            "memory_bytes": one["memory_bytes"],
            "lengths": lengths,
            "words_of_original": None if name == MOONSHINE else sum(a == b for a, b in zip(texts[name], texts[ORIGINAL], strict=True)),
            "words_of_whole_windows": sum(a == b for a, b in zip(texts[name], texts[whole], strict=True)),
            "loops": sum(is_loop(a) and not is_loop(b) for a, b in zip(texts[name], texts[ORIGINAL], strict=True)),
        }
    manifest = read_manifest(_quantized_folder(arguments))
    return {
        "model": arguments.model,
        "method": manifest.recipe.method.title,
        "tuned": to_plain(manifest.short_context),
        "timed_clips": len(times),
        "clips": len(next(iter(texts.values()))),
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        **machine(),
        "systems": systems,
    }


def _draw(summary: dict[str, Any], file: Path) -> None:
    """Draw the seconds of a clip against its length, a curve for each system. The same results give the same file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    axis = figure.subplots()
    for (name, one), (color, marker) in zip(summary["systems"].items(), STYLES, strict=False):
        lengths = [float(length) for length in one["lengths"]]
        spent = [times["cpu_s"] for times in one["lengths"].values()]
        label = f"{name} ({one['context']})" if name.endswith("short") else name
        axis.plot(lengths, spent, label=label, color=color, marker=marker, markersize=4, linewidth=1.2)
    axis.set_xlabel("length of the clip (s)")
    axis.set_ylabel("processor time for a clip (s)")
    axis.set_xlim(0, None)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(axis="y", alpha=0.3)
    axis.set_title(
        f"{MODELS[summary['model']]}, {summary['processor']['name']}, threads: {summary['threads']}", fontsize="medium", loc="left"
    )
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    save_figure(figure, file)


if __name__ == "__main__":
    main()
