"""Measure the same codes in every runtime, beside other systems: words, parity, size, speed and memory.

    python benchmarks/runtimes.py --speech DIR --work SCRATCH [--models tiny.en base moonshine-base] [--repeats 5] [--threads 2]

DIR/calibration and DIR/dev-* hold the speech. Files are made once in SCRATCH. Every system then runs in a process of its own, one
after the other; what is finished in SCRATCH is not measured again. Speed: seconds for the first four utterances of each set, one at a
time, after one warm-up, medians over the repeats. Memory: peak of the process above what it held before the model was loaded. The
processor and its instruction sets are recorded, since speed depends on them.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, SETS, dynamic_int8, machine, script_parser, write_json

from sottovoce import api
from sottovoce.backends.agreement import agree
from sottovoce.backends.export import export
from sottovoce.backends.onnx_runtime.layout import ENCODER
from sottovoce.backends.onnx_runtime.runtime import OnnxRecognizer
from sottovoce.backends.onnx_runtime.writer import write_onnx
from sottovoce.backends.registry import open_runtime, target_named
from sottovoce.backends.source import Source
from sottovoce.backends.transcribe_cpp.writer import write_gguf
from sottovoce.backends.whisper_cpp.writer import write_ggml
from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.data.load import load_data
from sottovoce.evaluation.activation_rounding import int8_activations
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch, TorchRecognizer
from sottovoce.evaluation.transcribe import transcribe_data
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_transcripts
from sottovoce.models import moonshine_wheel
from sottovoce.models.bundled import MOONSHINE as WHEEL
from sottovoce.models.bundled import locate
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe, Rule, encoder_rule
from sottovoce.system.memory import memory_bytes, peak_memory_bytes
from sottovoce.system.plain_data import from_plain, to_plain

CLIPS_PER_SET = 4
PARTED, HARD = "dev-librispeech", "test-other"  # the set of two parts, and one of them; the other is dev-clean
# Name: how it is quantized (None: not), and what runs it.
QUANTIZED: dict[str, dict[str, Any]] = {
    "fade-4bit": {"target": "gguf", "method": "fade", "bits": 4},
    "fade-4bit-min": {
        "target": "gguf",
        "method": "fade",
        "bits": 4,
        "symmetric": False,
        "rules": (Rule(match="proj_out", bits=4, symmetric=True),),
    },
    "rtn-4bit": {"target": "gguf", "method": "rtn", "bits": 4},
    "rtn-8bit": {"target": "gguf", "method": "rtn", "bits": 8},
    "fade-onnx-4bit": {"target": "onnx", "method": "fade", "bits": 4},
    "fade-onnx-8bit-encoder": {"target": "onnx", "method": "fade", "bits": 4, "rules": (encoder_rule(target_named("onnx"), 8),)},
    "fade-onnx-2bit": {"target": "onnx", "method": "fade", "bits": 2},
}
SYSTEMS: dict[str, tuple[str | None, str]] = {
    "float32, PyTorch": (None, "torch"),
    "4 bits FADE, PyTorch (simulated)": ("fade-4bit", "torch"),
    "4 bits FADE, PyTorch (simulated, int8 activations)": ("fade-4bit", "torch-int8"),
    "4 bits FADE, transcribe.cpp": ("fade-4bit", "gguf"),
    "4 bits FADE, whisper.cpp": ("fade-4bit", "ggml"),
    "4 bits FADE with minima, PyTorch (simulated)": ("fade-4bit-min", "torch"),
    "4 bits FADE with minima, transcribe.cpp": ("fade-4bit-min", "gguf"),
    "4 bits RTN, transcribe.cpp": ("rtn-4bit", "gguf"),
    "8 bits RTN (Q8_0), transcribe.cpp": ("rtn-8bit", "gguf"),
    "float16, transcribe.cpp": (None, "gguf"),
    "float16, whisper.cpp": (None, "ggml"),
    "4 bits FADE for ONNX, PyTorch (simulated)": ("fade-onnx-4bit", "torch"),
    "4 bits FADE for ONNX, PyTorch (simulated, int8 activations)": ("fade-onnx-4bit", "torch-int8"),
    "4 bits FADE, ONNX Runtime": ("fade-onnx-4bit", "onnx"),
    "4 bits FADE, float32 activations, ONNX Runtime": ("fade-onnx-4bit", "onnx-float32"),
    "4 bits FADE, 8-bit encoder for ONNX, PyTorch (simulated)": ("fade-onnx-8bit-encoder", "torch"),
    "4 bits FADE, 8-bit encoder, ONNX Runtime": ("fade-onnx-8bit-encoder", "onnx"),
    "2 bits FADE for ONNX, PyTorch (simulated)": ("fade-onnx-2bit", "torch"),
    "2 bits FADE for ONNX, PyTorch (simulated, int8 activations)": ("fade-onnx-2bit", "torch-int8"),
    "2 bits FADE, ONNX Runtime": ("fade-onnx-2bit", "onnx"),
    "2 bits FADE, float32 activations, ONNX Runtime": ("fade-onnx-2bit", "onnx-float32"),
    "float32, ONNX Runtime": (None, "onnx"),
    "dynamic int8 encoder, ONNX Runtime": (None, "onnx-int8"),
    "int8, faster-whisper": (None, "ct2-int8"),
    "float32, faster-whisper": (None, "ct2-float32"),
    "int8 weights as shipped, ONNX Runtime": (None, "shipped"),
}
MOONSHINE = "moonshine-base"
WHISPER_ONLY = ("ct2", "ggml", "onnx-int8")  # runtimes, and the dynamic quantization of a window of fixed length
SIMULATED = {
    "4 bits FADE, transcribe.cpp": "4 bits FADE, PyTorch (simulated)",
    "4 bits FADE, whisper.cpp": "4 bits FADE, PyTorch (simulated)",
    "4 bits FADE with minima, transcribe.cpp": "4 bits FADE with minima, PyTorch (simulated)",
    "4 bits FADE, ONNX Runtime": "4 bits FADE for ONNX, PyTorch (simulated)",
    "4 bits FADE, float32 activations, ONNX Runtime": "4 bits FADE for ONNX, PyTorch (simulated)",
    "4 bits FADE, 8-bit encoder, ONNX Runtime": "4 bits FADE, 8-bit encoder for ONNX, PyTorch (simulated)",
    "2 bits FADE, ONNX Runtime": "2 bits FADE for ONNX, PyTorch (simulated)",
    "2 bits FADE, float32 activations, ONNX Runtime": "2 bits FADE for ONNX, PyTorch (simulated)",
    "8 bits RTN (Q8_0), transcribe.cpp": "float32, PyTorch",
    "float16, transcribe.cpp": "float32, PyTorch",
    "float16, whisper.cpp": "float32, PyTorch",
    "float32, ONNX Runtime": "float32, PyTorch",
}

WRITERS: dict[str, Callable[[Source, Path], object]] = {"gguf": write_gguf, "ggml": write_ggml, "onnx": write_onnx}
SHIPPED = "4 bits FADE, transcribe.cpp"
COMPARED = ("float32, PyTorch", "8 bits RTN (Q8_0), transcribe.cpp", "4 bits RTN, transcribe.cpp", "int8, faster-whisper")


class FasterWhisper:
    """Run CTranslate2 as faster-whisper does, greedily, without timestamps and without fallback."""

    max_duration_s = 30.0

    def __init__(self, name: str, compute_type: str, threads: int, work: Path) -> None:
        import ctranslate2

        folder, parts = locate(name)
        if len(parts) > 1:  # published in pieces: joined once
            joined = work / "joined"
            if not joined.is_dir():
                shutil.copytree(folder, joined)
                (joined / "model.bin").write_bytes(b"".join(part.read_bytes() for part in parts))
            folder = joined
        self.source = str(folder)
        self._storage = ctranslate2.StorageView
        self.network = ctranslate2.models.Whisper(
            self.source, device="cpu", compute_type=compute_type, intra_threads=threads, inter_threads=1
        )
        self.model = api.load(f"bundled:{name}")
        self.model.network.model.encoder.layers = torch.nn.ModuleList()  # only prompts, features and words are wanted of it
        self.stored_bytes = (Path(self.source) / "model.bin").stat().st_size

    def recognize(self, recordings: Any, language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        began = time.perf_counter()
        features = self.model.features(recordings)["input_features"].numpy()
        encoded = self.network.encode(self._storage.from_array(features))
        between = time.perf_counter()
        prompt = self.model.teacher_forcing([[]], language)[0]["decoder_input_ids"][0].tolist()
        found = self.network.generate(encoded, [prompt] * len(recordings), beam_size=1, sampling_temperature=0, max_length=448)
        recognitions = []
        for result in found:
            tokens = result.sequences_ids[0]
            recognitions.append(Recognition(text=self.model.text(tokens), tokens=tuple(tokens), ended=len(tokens) < 440))
        return RecognitionBatch(recognitions=recognitions, encoder_s=between - began, decoder_s=time.perf_counter() - between)

    def recognize_long(self, recording: Any, language: str | None) -> None:
        return None


class ShippedMoonshine(OnnxRecognizer):
    """Run the two graphs of the wheel `moonshine-cpp` (weights in int8, arithmetic in float32) as our own: greedily, without its library.

    `floats`: the same model as we export it, which has processor and settings.
    """

    def __init__(self, floats: Path, threads: int) -> None:
        super().__init__(floats, threads)
        spec = find_spec(WHEEL.package)
        assert spec is not None
        assert spec.submodule_search_locations
        folder = Path(spec.submodule_search_locations[0]) / WHEEL.folder
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads
        self._files = tuple(folder / name for name in (moonshine_wheel.ENCODER, moonshine_wheel.DECODER))
        self._encoder, self._decoder = (
            self._runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]) for file in self._files
        )

    @property
    def stored_bytes(self) -> int:
        return sum(file.stat().st_size for file in self._files)

    def _no_cache(self, count: int) -> list[Any]:
        """These graphs take no empty keys of the audio, though the first step does not read them."""
        lengths = (int(".encoder." in name) for name in self._past)
        return [self._value(np.zeros((count, self._heads, length, self._size), np.float32)) for length in lengths]


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--speech", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--models", nargs="+", default=["tiny.en", "base"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="only so many utterances of each set, for a first look")
    parser.add_argument("--only", nargs="+", help="only these systems, for a first look")
    parser.add_argument("--speed-only", action="store_true", help="timing alone")
    parser.add_argument("--words-only", action="store_true", help="no timing, for a busy machine")
    parser.add_argument("--out", type=Path, default=RESULTS / "runtimes")
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "SYSTEM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        _work(arguments, *arguments.worker)
        return
    for model in arguments.models:
        for name, system in SYSTEMS.items():
            if (arguments.only and name not in arguments.only) or not _suits(model, system[1]):
                continue
            try:
                _file_of(arguments, model, *system)
            except Exception as exc:  # noqa: BLE001 - one system that cannot be made must not stop the others
                print(f"{model}: {name} cannot be made: {type(exc).__name__}: {exc}", flush=True)
                continue
            for timed in (False,) if arguments.words_only else (True,) if arguments.speed_only else (False, True):
                if not _result_file(arguments, model, name, timed).is_file():
                    print(f"{model}: {name}{', speed' if timed else ''}", flush=True)
                    extra = ["--words-only"] if not timed else []
                    command = [sys.executable, __file__, *sys.argv[1:], *extra, "--worker", model, name]
                    subprocess.run(command, check=False)
        write_json(arguments.out / f"{model}.json", _summary(arguments, model))


def _suits(model: str, runtime: str) -> bool:
    return runtime != "shipped" if model != MOONSHINE else not runtime.startswith(WHISPER_ONLY)


def _result_file(arguments: argparse.Namespace, model: str, system: str, timed: bool) -> Path:
    kind = "speed" if timed else "words"
    work: Path = arguments.work
    return work / model / "results" / f"{system.replace(' ', '_').replace(',', '')}.{kind}.json"


def _file_of(arguments: argparse.Namespace, model: str, quantization: str | None, runtime: str) -> Path | None:
    """Return the file or folder that a system runs; make it if it is not there."""
    work: Path = arguments.work / model
    folder = work / quantization if quantization else None
    if quantization and folder is not None and not folder.is_dir():
        settings = dict(QUANTIZED[quantization])
        target, method = settings.pop("target"), settings.pop("method")
        rules = settings.pop("rules", ())
        recipe = Recipe(method=method_named(method), format=target_named(target).format(**settings), rules=rules)
        started = time.perf_counter()
        api.quantize(f"bundled:{model}", folder, recipe=recipe, target=target, calibration=arguments.speech / "calibration")
        print(f"{model}: {quantization} quantized in {time.perf_counter() - started:.0f} s", flush=True)
    if runtime.startswith(("torch", "ct2")):
        return folder
    if runtime == "shipped":
        return _file_of(arguments, model, None, "onnx")
    file = work / f"{quantization or 'float'}.{runtime}"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    if folder is not None:
        kind, _, activations = runtime.partition("-")
        export(folder, kind, file, verify=False, activations=activations or None)
    elif runtime == "onnx-int8":
        floats = _file_of(arguments, model, None, "onnx")
        assert floats is not None
        shutil.copytree(floats, file)
        dynamic_int8(floats / ENCODER, file / ENCODER)  # a decoder with two branches does not load after it
    else:
        WRITERS[runtime](Source(api.load(f"bundled:{model}"), {}), file)
    return file


def _open(arguments: argparse.Namespace, model: str, system: str, stack: contextlib.ExitStack) -> Any:
    quantization, runtime = SYSTEMS[system]
    file = _file_of(arguments, model, quantization, runtime)
    if runtime.startswith("torch"):
        loaded = api.load(file or f"bundled:{model}")
        if runtime == "torch-int8":
            names = [layer.name for layer in loaded.layers()]
            stack.enter_context(int8_activations(loaded, names, half_scales="onnx" not in str(quantization)))
        return TorchRecognizer(loaded)
    if runtime.startswith("ct2"):
        return FasterWhisper(model, runtime.removeprefix("ct2-"), arguments.threads, arguments.work / model)
    if runtime == "shipped":
        assert file is not None
        return ShippedMoonshine(file, arguments.threads)
    return open_runtime(runtime.partition("-")[0], str(file), arguments.threads)


def _work(arguments: argparse.Namespace, model: str, system: str) -> None:
    before = memory_bytes()
    sets = {name: load_data(arguments.speech / name) for name in SETS}
    if arguments.limit:
        sets = {name: data.take(arguments.limit) for name, data in sets.items()}
    stack = contextlib.ExitStack()
    recognizer = _open(arguments, model, system, stack)
    result: dict[str, Any] = {"bytes": recognizer.stored_bytes, "threads": arguments.threads}
    if arguments.words_only:
        result["transcripts"] = {name: to_plain(transcribe_data(recognizer, data).transcripts) for name, data in sets.items()}
    else:
        clips = [u.samples() for data in sets.values() for u in list(data)[:CLIPS_PER_SET]]
        result["audio_s"] = sum(map(len, clips)) / SAMPLE_RATE
        runs = []
        for _ in range(arguments.repeats + 1):
            measured = [recognized(recognizer, clip, arguments.threads) for clip in clips]
            runs.append(
                {
                    "encoder_s": sum(batch.encoder_s for batch in measured),
                    "decoder_s": sum(batch.decoder_s for batch in measured),
                    "tokens": sum(len(batch.recognitions[0].tokens) for batch in measured),
                }
            )
        result["runs"] = runs[1:]
        result["memory_bytes"] = peak_memory_bytes() - before
    file = _result_file(arguments, model, system, not arguments.words_only)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))


def recognized(recognizer: Any, clip: np.ndarray, threads: int, language: str | None = None) -> RecognitionBatch:
    """Recognize one clip, with the seconds of encoder and decoder apart in every runtime."""
    batch: RecognitionBatch = recognizer.recognize([clip], language)
    if not hasattr(recognizer, "_calls"):
        return batch
    began = time.perf_counter()  # whisper.cpp reports one time for both: run its encoder once more, alone
    recognizer._calls.whisper_encode(recognizer._context, 0, threads)
    encoder_s = time.perf_counter() - began
    return replace(batch, encoder_s=encoder_s, decoder_s=batch.decoder_s - encoder_s)


def _summary(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    words = {name: _read(_result_file(arguments, model, name, False)) for name in SYSTEMS}
    speed = {name: _read(_result_file(arguments, model, name, True)) for name in SYSTEMS}
    transcripts_of = {
        name: {data: from_plain(tuple[Transcript, ...], rows) for data, rows in found["transcripts"].items()}
        for name, found in words.items()
        if found
    }
    systems = {}
    for name in SYSTEMS:
        found = words[name] or speed[name]
        if not found:
            continue
        sets = transcripts_of.get(name, {})
        row: dict[str, Any] = {"bytes": found["bytes"], "sets": {}}
        for data, transcripts in sets.items():
            reference = transcripts_of.get("float32, PyTorch", {}).get(data)
            score = score_transcripts(transcripts, None if name == "float32, PyTorch" else reference)
            row["sets"][data] = {
                "wer": score.wer,
                "capped_wer": score.capped_wer,
                "interval": [score.low, score.high],
                "loops": len(score.looped),
                "paired_with_float": to_plain(score.paired),
            }
            if data == PARTED:
                row["sets"][data]["parts"] = {part: _part(transcripts, reference, ids) for part, ids in _parts(arguments).items()}
            if name in SIMULATED and SIMULATED[name] in transcripts_of:
                simulated = transcripts_of[SIMULATED[name]][data]
                row["sets"][data]["same_words_as_simulated"] = agree(transcripts, simulated).equal
                row["sets"][data]["utterances"] = len(transcripts)
                row["sets"][data]["wer_simulated"] = score_transcripts(simulated).wer
        if name == SHIPPED:
            row["paired"] = {
                other: {data: to_plain(score_transcripts(ours, transcripts_of[other][data]).paired) for data, ours in sets.items()}
                for other in COMPARED
                if other in transcripts_of
            }
        if timed := speed[name]:
            runs, audio_s = timed["runs"], timed["audio_s"]
            encoder_s, decoder_s = (statistics.median(run[key] for run in runs) for key in ("encoder_s", "decoder_s"))
            row["speed"] = {
                "encoder_s": encoder_s,
                "decoder_s": decoder_s,
                "audio_s": audio_s,
                "rtfx": audio_s / (encoder_s + decoder_s),
                # transcribe.cpp reports no tokens for Whisper.
                "ms_per_token": 1000 * decoder_s / runs[0]["tokens"] if runs[0]["tokens"] else None,
                "runs": runs,
            }
            row["memory_bytes"] = timed["memory_bytes"]
        systems[name] = row
    threads = {
        f"{kind}_threads": sorted({found["threads"] for found in results.values() if found})
        for kind, results in (("words", words), ("speed", speed))
    }
    return {"model": model, **machine(), **threads, "systems": systems}


def _parts(arguments: argparse.Namespace) -> dict[str, set[str]]:
    """The ids of the easy and of the hard part of LibriSpeech, as the manifest names their sources."""
    rows = [json.loads(line) for line in (arguments.speech / PARTED / "manifest.jsonl").read_text().splitlines()]
    hard = {row["id"] for row in rows if HARD in row["source"]}
    return {"dev-clean": {row["id"] for row in rows} - hard, HARD: hard}


def _part(transcripts: Sequence[Transcript], reference: Sequence[Transcript] | None, ids: set[str]) -> dict[str, Any]:
    own = [transcript for transcript in transcripts if transcript.id in ids]
    score = score_transcripts(own, None if reference is None else [transcript for transcript in reference if transcript.id in ids])
    return {"utterances": len(own), "wer": score.wer, "paired_with_float": to_plain(score.paired)}


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None


if __name__ == "__main__":
    main()
