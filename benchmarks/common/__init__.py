"""What the benchmarks share: the test sets, the machine a figure was measured on, files of results, ONNX Runtime's own int8."""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_transcripts
from sottovoce.system.atomic_files import written_whole
from sottovoce.system.plain_data import to_plain
from sottovoce.system.versions import environment, processor

RESULTS = Path(__file__).parents[1] / "results"
MODELS = {"tiny.en": "Whisper tiny.en", "base": "Whisper base", "moonshine-base": "Moonshine base"}  # bundled models, titles in tables
SETS = {"dev-librispeech": "LibriSpeech", "dev-accented": "accented", "dev-home": "home"}  # folders under --speech, titles in tables


def script_parser(about: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the text of a script, as it is."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def machine() -> dict[str, Any]:
    """Return what a figure may depend on: the processor with its instruction sets, and the versions of all packages that count."""
    return {"processor": to_plain(processor()), "environment": environment()}


def write_json(file: Path, content: Any) -> None:
    """Write a file of results, whole or not at all; its folder is made."""
    with written_whole(file) as handle:
        handle.write(json.dumps(content, indent=1) + "\n")


def bench_rows(folder: str) -> list[dict[str, str]]:
    """Return the rows of the table of a bench."""
    with (RESULTS / folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def sizes_by_format() -> dict[str, dict[str, dict[str, int]]]:
    """Return the bytes of whole files by model, runtime and format, as `format_sizes.py` measured them."""
    found: dict[str, dict[str, dict[str, int]]] = json.loads((RESULTS / "format_sizes.json").read_text())["bytes"]
    return found


def is_measured(about: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Tell whether there is a row with all settings of `about`."""
    return any(about == {name: row.get(name) for name in about} for row in rows)


def paired(ours: Sequence[Transcript], others: Sequence[Transcript]) -> dict[str, Any]:
    """The difference of word error rates in points, with its interval, and the loops that only ours have."""
    compared = score_transcripts(ours, others).paired
    assert compared is not None
    added = set(score_transcripts(ours).looped) - set(score_transcripts(others).looped)
    return {
        "difference_points": 100 * compared.difference,
        "interval_points": [100 * compared.low, 100 * compared.high],
        "loops_added": sorted(added),
    }


def exported(folder: Path, runtime: str) -> Path:
    """Return a quantized folder itself for PyTorch, or its export beside it, made once."""
    from sottovoce import api
    from sottovoce.backends.registry import backend_named

    if runtime == "torch":
        return folder
    file = folder.parent / backend_named(runtime).file_name.format(f"{folder.name}-{runtime}")
    if not file.exists():
        api.export(folder, runtime, file)
    return file


def dynamic_int8(floats: Path, out: Path) -> None:
    """Write an exported ONNX file again, with every MatMul quantized by ONNX Runtime's own `quantize_dynamic` (QInt8).

    It finds float32 weights alone, so those of float16 with a cast are made float32 first.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(floats)
    halves = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name.endswith("/half")}
    for node in [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in halves]:
        tensor = halves[node.input[0]]
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype("float32"), node.output[0]))
        model.graph.node.remove(node)
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(model, out, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"], extra_options=options)
