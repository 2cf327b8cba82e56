"""Run a folder of sherpa-onnx (Whisper, low bits) in OpenVINO and in ONNX Runtime: seconds, differences and memory.

    pip install openvino
    python benchmarks/openvino_files.py FOLDER --speech DIR [--threads 1] [--repeats 15] [--out FILE]

FOLDER was written by `sottovoce export CHECKPOINT sherpa-onnx FOLDER`. The encoder hears the first recording of DIR/dev-librispeech.
The decoder takes the three tokens of the prompt, and then one more token, both with the encoder's states. The two runtimes take turns
in one process, and the result has medians. Memory: the peak of a process of its own that loads both files and runs each once, above what
it held before.

OpenVINO wants the codes of `GatherBlockQuantized` (the token embedding) as a constant. In the file they are those of the output head,
seen in another shape, so OpenVINO gets a copy of the file in which they stand twice.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import RESULTS, SETS, machine, script_parser, write_json
from onnx import numpy_helper

from sottovoce import api
from sottovoce.backends.sherpa_onnx.layout import FILES
from sottovoce.data.load import load_data
from sottovoce.system.memory import memory_bytes, peak_memory_bytes

MODEL = "bundled:tiny.en"
PROMPT = (50257, 50362, 50256)  # any three tokens: only their number takes time
Run = Callable[[str, dict[str, np.ndarray]], list[np.ndarray]]  # of a file and its inputs
RUNTIMES = ("ONNX Runtime", "OpenVINO")


def with_constant_codes(file: Path, out: Path) -> None:
    """Copy a decoder to `out` so that each input of `GatherBlockQuantized` but the tokens is a constant of its own."""
    model = onnx.load(str(file))
    made = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "GatherBlockQuantized":
            continue
        for place in (0, 2, 3):
            name = node.input[place]
            while name not in constants:
                name = made[name].input[0]
            values = constants[name]
            values = values.reshape(len(values), -1) if place == 0 else values.astype(np.float32) if place == 2 else values
            node.input[place] = f"embedding/{place}"
            model.graph.initializer.append(numpy_helper.from_array(values, node.input[place]))
    onnx.save(model, str(out))


def runtime(name: str, threads: int, files: dict[str, Path]) -> Run:
    """Load the files into a runtime."""
    if name == "OpenVINO":
        import openvino

        core = openvino.Core()
        compiled = {kind: core.compile_model(str(file), "CPU", {"INFERENCE_NUM_THREADS": threads}) for kind, file in files.items()}
        return lambda kind, inputs: list(compiled[kind](inputs).values())
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {kind: onnxruntime.InferenceSession(str(file), options) for kind, file in files.items()}
    return lambda kind, inputs: sessions[kind].run(None, inputs)


def decoder_inputs(states: list[np.ndarray], tokens: tuple[int, ...], offset: int, positions: int) -> dict[str, np.ndarray]:
    keys, values = states
    cache = np.zeros((keys.shape[0], 1, positions, keys.shape[-1]), np.float32)
    return {
        "tokens": np.array([tokens], np.int64),
        "in_n_layer_self_k_cache": cache,
        "in_n_layer_self_v_cache": cache,
        "n_layer_cross_k": keys,
        "n_layer_cross_v": values,
        "offset": np.array([offset], np.int64),
    }


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the relative difference; tokens that a file forbids stand at minus infinity in both."""
    finite = np.isfinite(wanted)
    return float(np.linalg.norm(found[finite] - wanted[finite]) / np.linalg.norm(wanted[finite]))


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "openvino.json")
    parser.add_argument("--worker", choices=RUNTIMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    encoder, decoder, *_ = (arguments.folder / name for name in FILES["whisper"])
    model = api.load(MODEL)
    utterance = load_data(arguments.speech / next(iter(SETS))).take(1).utterances[0]
    mel = {"mel": model.features([utterance.samples()])["input_features"].numpy()}
    positions = model.network.config.max_target_positions
    with tempfile.TemporaryDirectory() as folder:
        constant = Path(folder) / "decoder.onnx"
        with_constant_codes(decoder, constant)
        files = {"ONNX Runtime": {"encoder": encoder, "decoder": decoder}, "OpenVINO": {"encoder": encoder, "decoder": constant}}
        if arguments.worker:
            before = memory_bytes()
            run = runtime(arguments.worker, arguments.threads, files[arguments.worker])
            run("decoder", decoder_inputs(run("encoder", mel)[:2], PROMPT, 0, positions))
            print(peak_memory_bytes() - before)
            return
        runs = {name: runtime(name, arguments.threads, files[name]) for name in RUNTIMES}
        states = runs["ONNX Runtime"]("encoder", mel)[:2]
        work = {
            "encoder": ("encoder", mel),
            "prompt": ("decoder", decoder_inputs(states, PROMPT, 0, positions)),
            "token": ("decoder", decoder_inputs(states, PROMPT[:1], len(PROMPT), positions)),
        }
        results: dict[str, Any] = {}
        for name, (kind, inputs) in work.items():
            wanted, found = (run(kind, inputs)[0] for run in runs.values())
            taken: dict[str, list[float]] = {runtime: [] for runtime in runs}
            for _ in range(arguments.repeats):
                for system, run in runs.items():
                    began = time.perf_counter()
                    run(kind, inputs)
                    taken[system].append(time.perf_counter() - began)
            seconds = {system: statistics.median(times) for system, times in taken.items()}
            results[name] = {"seconds": seconds, "relative_difference": difference(found, wanted)}
            print(name, results[name], flush=True)
        size = {system: sum(file.stat().st_size for file in files[system].values()) for system in runs}
    memory = {}
    for name in RUNTIMES:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
        memory[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    import openvino

    result = {"version": openvino.__version__, "bytes": size, "memory_bytes": memory, **results, "machine": machine()}
    write_json(arguments.out, result | {"threads": arguments.threads})
    print(json.dumps(result["memory_bytes"]))


if __name__ == "__main__":
    main()
