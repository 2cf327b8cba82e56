"""Measure MLX and sherpa-onnx beside their own int8 files and faster-whisper: words, parity, size, processor time and memory.

    python benchmarks/other_runtimes.py --speech DIR --work SCRATCH [--clips 6]

DIR/calibration and DIR/dev-* hold the speech. Quantized folders and files are made once in SCRATCH, which takes most of the time; what
is measured there is not measured again. Every system runs the first `--clips` utterances of each set in a process of its own, on one
thread. Seconds are processor time of the process, all its threads together, so that other work on the machine hardly changes them.
Memory: peak of the process above what it held before the model was loaded. sherpa-onnx tells no times of its parts: the encoder's is
that of a recording of a tenth of a second, whose window is as long and which has no token.

The int8 files of sherpa-onnx are made of the same float weights as its script `scripts/whisper/export-onnx.py` makes them:
`quantize_dynamic` of all `MatMul`, QInt8.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, SETS, dynamic_int8, machine, script_parser, write_json

from sottovoce import api
from sottovoce.backends.agreement import agree
from sottovoce.backends.export import export
from sottovoce.backends.registry import open_runtime, target_named
from sottovoce.backends.sherpa_onnx.layout import FILES, TOKENS
from sottovoce.backends.sherpa_onnx.writer import write_sherpa
from sottovoce.backends.source import Source
from sottovoce.data.load import load_data
from sottovoce.evaluation.recognizer import TorchRecognizer
from sottovoce.evaluation.transcribe import transcribe_data
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_transcripts
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.memory import memory_bytes, peak_memory_bytes
from sottovoce.system.plain_data import from_plain, to_plain

MODEL = "tiny.en"
# sherpa-onnx holds what ONNX Runtime holds.
QUANTIZED: dict[str, dict[str, Any]] = {
    "fade-mlx-3bit": {"target": "mlx", "bits": 3, "group_size": 64, "utterances": 128},
    "fade-onnx-4bit": {"target": "onnxruntime", "bits": 4, "group_size": 32, "utterances": 48},
}
# Name: the quantized folder, if any, and what runs it. The first is what the words of all others are compared with.
SYSTEMS: dict[str, tuple[str | None, str]] = {
    "float32, PyTorch": (None, "torch"),
    "3 bits FADE for MLX, PyTorch": ("fade-mlx-3bit", "torch"),
    "3 bits FADE, mlx-whisper": ("fade-mlx-3bit", "mlx"),
    "4 bits FADE for ONNX, PyTorch": ("fade-onnx-4bit", "torch"),
    "4 bits FADE, sherpa-onnx": ("fade-onnx-4bit", "sherpa-onnx"),
    "int8, sherpa-onnx": (None, "sherpa-onnx-int8"),
    "int8, faster-whisper": (None, "ct2-int8"),
}
SIMULATED = {
    "3 bits FADE, mlx-whisper": "3 bits FADE for MLX, PyTorch",
    "4 bits FADE, sherpa-onnx": "4 bits FADE for ONNX, PyTorch",
}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--speech", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--clips", type=int, default=6, help="utterances of each set")
    parser.add_argument("--only", nargs="+", help="only these systems, for a first look")
    parser.add_argument("--out", type=Path, default=RESULTS / "other_runtimes.json")
    parser.add_argument("--worker", metavar="SYSTEM", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.worker:
        _work(arguments, arguments.worker)
        return
    for name, system in SYSTEMS.items():
        if arguments.only and name not in arguments.only:
            continue
        try:
            _file_of(arguments, *system)
        except Exception as exc:  # noqa: BLE001 - one system that cannot be made must not stop the others
            print(f"{name} cannot be made: {type(exc).__name__}: {exc}", flush=True)
            continue
        if not _result_file(arguments, name).is_file():
            began = time.perf_counter()
            done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--worker", name], check=False)
            print(f"{name}: {'done' if done.returncode == 0 else 'failed'} in {time.perf_counter() - began:.0f} s", flush=True)
    write_json(arguments.out, _summary(arguments))


def _result_file(arguments: argparse.Namespace, system: str) -> Path:
    work: Path = arguments.work
    return work / MODEL / f"results-{arguments.clips}" / f"{system.replace(' ', '_').replace(',', '')}.json"


def _file_of(arguments: argparse.Namespace, quantization: str | None, runtime: str) -> Path | None:
    """Return the folder that a system runs; make it if it is not there."""
    work: Path = arguments.work / MODEL
    folder = work / quantization if quantization else None
    if quantization and folder is not None and not folder.is_dir():
        settings = dict(QUANTIZED[quantization])
        target = target_named(settings.pop("target"))
        calibration = arguments.speech / "calibration"
        api.quantize(
            f"bundled:{MODEL}",
            folder,
            recipe=Recipe(format=target.format(**settings), joined=0.0),
            target=target.name,
            calibration=calibration,
        )
    if runtime in ("torch", "ct2-int8"):
        return folder
    file = work / f"{quantization or 'float'}.{runtime}"
    if file.exists():
        return file
    if folder is not None:
        export(folder, runtime, file, verify=False)
    else:
        file.mkdir(parents=True)
        _sherpa_int8(file)
    return file


def _sherpa_int8(folder: Path) -> None:
    """The float weights in the same graphs, quantized by ONNX Runtime's own dynamic quantization."""
    with tempfile.TemporaryDirectory() as floats:
        write_sherpa(Source(api.load(f"bundled:{MODEL}"), {}), Path(floats))
        for name in FILES["whisper"]:
            dynamic_int8(Path(floats) / name, folder / name)
        (folder / TOKENS).write_bytes((Path(floats) / TOKENS).read_bytes())


def _open(arguments: argparse.Namespace, system: str) -> Any:
    quantization, runtime = SYSTEMS[system]
    file = _file_of(arguments, quantization, runtime)
    if runtime == "torch":
        return TorchRecognizer(api.load(file or f"bundled:{MODEL}"))
    if runtime == "ct2-int8":
        from runtimes import FasterWhisper  # the script beside this one

        return FasterWhisper(MODEL, "int8", 1, arguments.work / MODEL)
    return open_runtime(runtime.removesuffix("-int8"), str(file), 1)


def _work(arguments: argparse.Namespace, system: str) -> None:
    time.perf_counter = time.process_time  # recognizers time their parts with it
    before = memory_bytes()
    recognizer = _open(arguments, system)
    sets = {name: load_data(arguments.speech / name).take(arguments.clips) for name in SETS}
    clip = next(iter(sets["dev-librispeech"])).samples()
    recognizer.recognize([clip], None)  # warm-up
    encoder_s, decoder_s, texts = 0.0, 0.0, {}
    alone = 0.0
    if "sherpa" in SYSTEMS[system][1]:
        alone = min(recognizer.recognize([np.zeros(1600, np.float32)], None).decoder_s for _ in range(3))
    for name, data in sets.items():
        rows = list[Transcript]()
        for utterance in data:
            found = transcribe_data(recognizer, replace(data, utterances=(utterance,)))  # one at a time, as all runtimes work
            encoder_s, decoder_s = encoder_s + found.encoder_s + alone, decoder_s + found.decoder_s - alone
            rows += found.transcripts
        texts[name] = to_plain(tuple(rows))
    result = {
        "bytes": recognizer.stored_bytes,
        "encoder_s": encoder_s,
        "decoder_s": decoder_s,
        "memory_bytes": peak_memory_bytes() - before,
        "transcripts": texts,
    }
    file = _result_file(arguments, system)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))


def _summary(arguments: argparse.Namespace) -> dict[str, Any]:
    found = {name: json.loads(file.read_text()) for name in SYSTEMS if (file := _result_file(arguments, name)).is_file()}
    transcripts = {
        name: tuple(t for data in SETS for t in from_plain(tuple[Transcript, ...], result["transcripts"][data]))
        for name, result in found.items()
    }
    tokenizer, systems = api.load(f"bundled:{MODEL}").processor.tokenizer, {}
    for name, result in found.items():
        original = next(iter(SYSTEMS))
        score = score_transcripts(transcripts[name], None if name == original else transcripts.get(original))
        tokens = sum(len(tokenizer(f" {t.text}", add_special_tokens=False).input_ids) + 1 for t in transcripts[name])  # with the end
        row = {
            "bytes": result["bytes"],
            "wer": score.wer,
            "capped_wer": score.capped_wer,
            "loops": len(score.looped),
            "encoder_s": result["encoder_s"],
            "decoder_s": result["decoder_s"],
            "ms_per_token": 1000 * result["decoder_s"] / tokens,
            "memory_bytes": result["memory_bytes"],
        }
        if (simulated := SIMULATED.get(name)) in transcripts:
            row["same_words_as_pytorch"] = agree(transcripts[name], transcripts[simulated]).equal
        systems[name] = row
    first = next(iter(transcripts.values()))
    return {
        "model": MODEL,
        "utterances": len(first),
        "calibration_utterances": {name: settings["utterances"] for name, settings in QUANTIZED.items()},
        "audio_s": sum(transcript.duration_s for transcript in first),
        "machine": machine() | {"threads": 1},
        "systems": systems,
    }


if __name__ == "__main__":
    main()
