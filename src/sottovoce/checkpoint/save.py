"""A quantized recognizer as a folder that `transformers` and vLLM load without this package.

Weights are compressed-tensors `pack-quantized` (0.18 or later): per layer `weight_packed` int32, `weight_scale`, `weight_shape`
and, for asymmetric grids, `weight_zero_point` packed along the rows. Scales are float16 numbers stored as float32, so that a
reader computes `(codes - zero_point) * scale` exactly. Everything else is float16. `sottovoce.json` carries the recipe, the
calibration draw, versions, per-layer diagnostics and a sha256 of every other file.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sottovoce.checkpoint.layout import WEIGHTS, packed_tensors, quantization_config
from sottovoce.checkpoint.manifest import FORMAT_VERSION, MANIFEST, write_manifest
from sottovoce.checkpoint.model_card import model_card
from sottovoce.errors import OutputError
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.system.atomic_files import built_beside, sha256, swap_in
from sottovoce.system.versions import environment


def save_quantized(result: QuantizedModel, folder: Path | str, *, overwrite: bool = False) -> Path:
    """Write `result` to `folder`, whole or not at all: it is built beside it and renamed.

    Raises `OutputError` if the folder exists (unless `overwrite`) or cannot be written; what was there then stays.
    """
    target = Path(folder).expanduser().absolute()
    refuse_existing(target, overwrite=overwrite)
    with built_beside(target) as build:
        content = build / target.name
        content.mkdir(mode=0o755)
        _write_files(result, content)
        swap_in(content, target)
    return target


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` if `target` exists and must not be replaced; only folders of ours and empty ones ever are."""
    if not target.exists():
        return
    if not overwrite:
        raise OutputError(f"{target} exists already; give another folder, or --overwrite to replace it")
    if not target.is_dir() or (any(target.iterdir()) and not (target / MANIFEST).is_file()):
        raise OutputError(f"{target} is not a folder written by sottovoce, so it is not replaced; remove it yourself")


def _write_files(result: QuantizedModel, folder: Path) -> None:
    network = result.model.network
    save_file(_state(result), folder / WEIGHTS, metadata={"format": "pt"})
    config = network.config.to_dict() | {"dtype": "float16", "quantization_config": quantization_config(result)}
    config.pop("_name_or_path", None)
    _write_json(folder / "config.json", config)
    network.generation_config.save_pretrained(folder)
    result.model.processor.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(result), encoding="utf-8")
    manifest = {
        "format_version": FORMAT_VERSION,
        "source": result.model.source,
        "recipe": asdict(result.recipe),
        "calibration": result.calibration,
        "environment": environment(),
        "layers": [asdict(report) for report in result.reports],
        "left_in_floating_point": list(result.plan.ignored),
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())},
    }
    write_manifest(folder, manifest)
    for file in folder.iterdir():
        file.chmod(0o644)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _state(result: QuantizedModel) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`. A head tied to the token embedding is stored once, under the embedding's name."""
    model, state = result.model, dict[str, Tensor]()
    for name, tensor in model.network.state_dict().items():
        module = name.removesuffix(".weight")
        if module in result.weights or (model.tied and module in (model.head, model.embedding) and model.head in result.weights):
            continue
        if model.tied and module == model.head:
            continue
        state[name] = tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()
    for name, weight in result.weights.items():
        state.update(packed_tensors(model.embedding if name == model.head and model.tied else name, weight))
    return {name: state[name].clone() for name in sorted(state)}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
