"""How quantized layers are stored in a folder: compressed-tensors `pack-quantized`."""

from typing import Any

import torch
from torch import Tensor

from sottovoce.core.packing import pack_rows, unpack_rows
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.errors import CheckpointError
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.plan import Plan

WEIGHTS = "model.safetensors"


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
        "ignore": list(result.plan.ignored),
        **({"dequantize": True} if len(groups) == 1 else {}),
    }


def quantization_groups(model: SpeechModel, plan: Plan) -> dict[str, Any]:
    """The layers of `plan` by grid, as compressed-tensors describes them."""
    groups = dict[tuple[int, int | None, bool], list[str]]()
    for layer, grid in plan.layers:
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
