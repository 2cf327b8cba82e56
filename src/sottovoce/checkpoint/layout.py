"""How quantized layers are stored in a folder.

Affine layers are compressed-tensors `pack-quantized` (0.18 or later), which `transformers` and vLLM load without this package: per
layer `weight_packed` int32, `weight_scale`, `weight_shape` and, for asymmetric grids, `weight_zero_point` packed along the rows.
Other formats store what `NumberFormat.pack` gives; such folders say so in `config.json`, and only sottovoce loads them.
Everything else is float16.
"""

from typing import Any

from torch import Tensor

from sottovoce.core.affine import Affine
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.quantization.plan import Plan, PlannedLayer

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
OWN_METHOD = "sottovoce"  # quantization method of folders that hold other than affine layers


def stored_name(layer: PlannedLayer) -> str:
    """Return the module name under which a layer is stored: a head that is tied to the token embedding under the embedding's."""
    return layer.tie_group or layer.name if layer.part == "head" else layer.name


def layer_tensors(name: str, weight: QuantizedTensor) -> dict[str, Tensor]:
    """Return one layer's tensors by their names in the file."""
    return {f"{name}.{suffix}": tensor for suffix, tensor in weight.pack().items()}


def quantization_config(plan: Plan) -> dict[str, Any]:
    """Return the description for `config.json`.

    `dequantize` makes `transformers` unpack while loading. Its loader knows a single width per file, so a folder of mixed widths goes
    without that flag and is refused by it, rather than read wrongly.
    """
    if not is_compressed_tensors(plan):
        return {"quant_method": OWN_METHOD, "formats": sorted({number_format.name for number_format in plan.formats})}
    groups = _config_groups(plan)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(plan.ignored),
        **({"dequantize": True} if len(groups) == 1 else {}),
    }


def is_compressed_tensors(plan: Plan) -> bool:
    """Return whether compressed-tensors knows all formats of the plan."""
    return all(isinstance(number_format, Affine) for number_format in plan.formats)


def loads_in_transformers(plan: Plan) -> bool:
    """Return whether the loader of `transformers` takes a folder of this plan: one affine format for all layers."""
    return is_compressed_tensors(plan) and len(_config_groups(plan)) == 1


def _config_groups(plan: Plan) -> dict[str, Any]:
    """The layers by format, as compressed-tensors describes them."""
    groups = dict[tuple[int, int | None, bool], list[str]]()
    for layer in plan.layers:
        assert isinstance(layer.format, Affine)  # noqa: S101 - see is_compressed_tensors
        targets = groups.setdefault((layer.format.bits, layer.format.group_size, layer.format.symmetric), [])
        targets += dict.fromkeys((layer.name, stored_name(layer)))
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
