"""A quantized recogniser as a folder that `transformers` and vLLM load without this package.

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

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sottovoce.core.grid import BITS
from sottovoce.core.packing import pack_rows, unpack_rows
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.errors import CheckpointError, OutputError
from sottovoce.files import built_beside, sha256, swap_in
from sottovoce.manifest import FORMAT_VERSION, MANIFEST, read_manifest, write_manifest
from sottovoce.model_card import model_card
from sottovoce.models import SpeechModel
from sottovoce.pipeline import QuantizedModel, environment
from sottovoce.recipe import Plan

WEIGHTS = "model.safetensors"


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
        "left_in_floating_point": list(result.plan.left),
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


def packed_tensors(name: str, weight: QuantizedTensor) -> dict[str, Tensor]:
    """One layer's tensors in the `pack-quantized` layout."""
    tensors = {
        f"{name}.weight_packed": pack_rows(weight.codes, weight.bits),
        f"{name}.weight_scale": weight.scale.float(),
        f"{name}.weight_shape": torch.tensor(weight.codes.shape),
    }
    if not weight.symmetric:
        tensors[f"{name}.weight_zero_point"] = pack_rows(weight.zero_point.T.contiguous(), weight.bits).T.contiguous()
    return tensors


def unpacked_tensor(name: str, tensors: dict[str, Tensor], bits: int, symmetric: bool) -> QuantizedTensor:
    """The inverse of `packed_tensors`. Raises `CheckpointError` for a missing tensor or one that breaks an invariant."""
    parts = ("weight_packed", "weight_scale", "weight_shape") + (() if symmetric else ("weight_zero_point",))
    missing = [part for part in parts if f"{name}.{part}" not in tensors]
    if missing:
        raise CheckpointError(f"{WEIGHTS} has no {name}.{missing[0]}")
    out, in_features = map(int, tensors[f"{name}.weight_shape"])
    scale = tensors[f"{name}.weight_scale"]
    codes = unpack_rows(tensors[f"{name}.weight_packed"], bits, in_features)
    if symmetric:
        zero = torch.full(scale.shape, 1 << (bits - 1), dtype=torch.uint8)
    else:
        zero = unpack_rows(tensors[f"{name}.weight_zero_point"].T.contiguous(), bits, out).T.contiguous()
    return QuantizedTensor(codes, scale.half(), zero, bits, symmetric)


def quantization_config(result: QuantizedModel) -> dict[str, Any]:
    """The compressed-tensors description for `config.json`.

    `dequantize` makes `transformers` unpack while loading. Its loader knows a single width per file, so a folder of mixed
    widths goes without that flag and is refused by it, rather than read wrongly.
    """
    groups = quantization_groups(result.model, result.plan)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(result.plan.left),
        **({"dequantize": True} if len(groups) == 1 else {}),
    }


def quantization_groups(model: SpeechModel, plan: Plan) -> dict[str, Any]:
    """The layers of `plan` by grid, as compressed-tensors describes them."""
    groups = dict[tuple[int, int | None, bool], list[str]]()
    for layer, grid in plan.steps:
        targets = groups.setdefault((grid.bits, grid.group_size, grid.symmetric), [])
        targets.append(layer.name)
        if layer.name == model.head and model.tied:
            targets.append(model.embedding)
    return {
        f"group_{i}": {
            "targets": targets,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": symmetric,
                "strategy": "channel" if size is None else "group",
                "group_size": size,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
        }
        for i, ((bits, size, symmetric), targets) in enumerate(groups.items())
    }


def load_quantized(folder: Path | str) -> tuple[Any, Any]:
    """Network (float32, dequantized) and processor of a folder of ours, every file checked against its sha256.

    Raises `CheckpointError` for a changed, missing or unknown file, an unknown version, or tensors that do not fit.
    """
    from transformers import AutoConfig, AutoModelForSpeechSeq2Seq, AutoProcessor, GenerationConfig

    folder = Path(folder)
    manifest = read_manifest(folder)
    weights = read_weights(folder, manifest)
    state = {name: tensor.float() for name, tensor in _plain_tensors(folder).items()}
    state |= {f"{name}.weight": weight.dequantize() for name, weight in weights.items()}
    try:
        config = AutoConfig.from_pretrained(folder)
        del config.quantization_config
        config.dtype = "float32"
        with torch.device("meta"):  # so that a description of a giant takes no memory before it is compared with what is there
            described = AutoModelForSpeechSeq2Seq.from_config(config).state_dict()
        shapes = {name: tensor.shape for name, tensor in described.items()}
        if odd := [name for name, tensor in state.items() if shapes.get(name) != tensor.shape]:
            raise CheckpointError(f"{folder}: the tensor {odd[0]!r} is not one that config.json describes")
        network = AutoModelForSpeechSeq2Seq.from_config(config)
        missing, _ = network.load_state_dict(state, strict=False)
        if left := sorted(set(missing) - set(getattr(network, "all_tied_weights_keys", {}) or {})):
            raise CheckpointError(f"{folder}: missing tensors {left}")
        network.tie_weights()
        network.generation_config = GenerationConfig.from_pretrained(folder)
        return network.eval(), AutoProcessor.from_pretrained(folder)
    except CheckpointError:
        raise
    except Exception as exc:  # transformers raises many kinds for a description that makes no sense
        raise CheckpointError(f"{folder}: does not make up a recogniser ({type(exc).__name__}: {exc})") from exc


def read_weights(folder: Path, manifest: dict[str, Any]) -> dict[str, QuantizedTensor]:
    """The codes of every quantized layer, by the name under which its tensors are stored."""
    found = dict[str, QuantizedTensor]()
    with _open_weights(folder) as file:
        names = set(file.keys())
        for target, bits, symmetric in _described_layers(folder / "config.json"):
            if f"{target}.weight_packed" not in names:
                continue  # the head, where it is stored under the embedding's name
            tensors = {name: file.get_tensor(name) for name in names if name.startswith(f"{target}.weight_")}
            try:
                found[target] = unpacked_tensor(target, tensors, bits, symmetric)
            except (ValueError, RuntimeError, TypeError, OverflowError) as exc:
                raise CheckpointError(f"{folder / WEIGHTS}: the tensors of {target!r} do not fit together ({exc})") from exc
    if len(found) != len(manifest["layers"]):
        raise CheckpointError(f"{folder}: {len(found)} quantized layers in {WEIGHTS}, {len(manifest['layers'])} in {MANIFEST}")
    return found


def _described_layers(file: Path) -> list[tuple[str, int, bool]]:
    """Name, bits and symmetry of the layers that `config.json` describes. Raises `CheckpointError`."""
    try:
        groups = json.loads(file.read_text(encoding="utf-8"))["quantization_config"]["config_groups"].values()
        found = [
            (str(target), scheme["weights"]["num_bits"], scheme["weights"]["symmetric"])
            for scheme in groups
            for target in scheme["targets"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(f"{file}: does not describe quantized layers ({type(exc).__name__}: {exc})") from exc
    for name, bits, symmetric in found:
        if type(bits) is not int or bits not in BITS or type(symmetric) is not bool:
            raise CheckpointError(f"{file}: {name!r} has bits {bits!r} and symmetry {symmetric!r}")
    return found


def _plain_tensors(folder: Path) -> dict[str, Tensor]:
    packed = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
    with _open_weights(folder) as file:
        return {name: file.get_tensor(name) for name in file.keys() if not name.endswith(packed)}  # noqa: SIM118


def _open_weights(folder: Path) -> Any:
    try:
        return safe_open(folder / WEIGHTS, "pt")
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{folder / WEIGHTS}: cannot be read ({exc}); fetch the folder again") from exc


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
