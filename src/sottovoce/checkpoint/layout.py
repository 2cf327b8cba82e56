"""How quantized layers are stored in a folder.

Affine layers are compressed-tensors `pack-quantized` (0.18 or later), which `transformers` and vLLM load without this package: per
layer `weight_packed` int32, `weight_scale`, `weight_shape` and, for asymmetric grids, `weight_zero_point` packed along the rows. MXFP4
and NVFP4 are its `mxfp4-pack-quantized` and `nvfp4-pack-quantized`: `weight_packed` uint8, `weight_scale` (E8M0 or E4M3) and, of NVFP4,
`weight_global_scale`.
Other formats store what `NumberFormat.pack` gives; such folders say so in `config.json`, and only sottovoce loads them.
Everything else is float16.
"""

from typing import Any

from torch import Tensor

from sottovoce.core.affine import Affine
from sottovoce.core.fp4 import MXFP4, NVFP4
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.quantization.plan import Plan, PlannedLayer

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
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
    groups, layouts = _config_groups(plan), {_layout(number_format) for number_format in plan.formats}
    if len(layouts) > 1:
        for group in groups.values():
            group["format"] = group.pop("layout")
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision" if len(layouts) > 1 else str(layouts.pop()),
        "quantization_status": "compressed",
        "config_groups": {name: {key: value for key, value in group.items() if key != "layout"} for name, group in groups.items()},
        "ignore": list(plan.ignored),
        **({"dequantize": True} if len(groups) == 1 else {}),
    }


def _layout(number_format: NumberFormat) -> str | None:
    """The name of compressed-tensors for how layers of a format are stored, or None: it has none."""
    if isinstance(number_format, Affine):
        return "pack-quantized"
    if isinstance(number_format, MXFP4):
        return "mxfp4-pack-quantized"
    return "nvfp4-pack-quantized" if isinstance(number_format, NVFP4) else None


def is_compressed_tensors(plan: Plan) -> bool:
    """Return whether compressed-tensors knows all formats of the plan."""
    return all(_layout(number_format) is not None for number_format in plan.formats)


def loads_in_transformers(plan: Plan) -> bool:
    """Return whether the loader of `transformers` takes a folder of this plan: one affine format for all layers."""
    return is_compressed_tensors(plan) and len(_config_groups(plan)) == 1


def _config_groups(plan: Plan) -> dict[str, Any]:
    """The layers by format, as compressed-tensors describes them, each with its `layout`."""
    groups = list[tuple[dict[str, Any], str | None, list[str]]]()
    for layer in plan.layers:
        weights, layout = _weight_arguments(layer.format), _layout(layer.format)
        found = next((targets for known, other, targets in groups if (known, other) == (weights, layout)), None)
        if found is None:
            groups.append((weights, layout, found := []))
        found += dict.fromkeys((layer.name, stored_name(layer)))
    return {
        f"group_{i}": {
            "targets": targets,
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "layout": layout,
        }
        for i, (weights, layout, targets) in enumerate(groups)
    }


def _weight_arguments(number_format: NumberFormat) -> dict[str, Any]:
    if isinstance(number_format, Affine):
        return {
            "num_bits": number_format.bits,
            "type": "int",
            "symmetric": number_format.symmetric,
            "strategy": "channel" if number_format.group_size is None else "group",
            "group_size": number_format.group_size,
            "dynamic": False,
        }
    assert isinstance(number_format, MXFP4 | NVFP4)  # noqa: S101 - see is_compressed_tensors
    power = isinstance(number_format, MXFP4)
    return {
        "num_bits": number_format.code_bits,
        "type": "float",
        "symmetric": True,
        "strategy": "group" if power else "tensor_group",
        "group_size": number_format.block,
        "dynamic": False,
        "scale_dtype": "torch.uint8" if power else "torch.float8_e4m3fn",
        "zp_dtype": "torch.uint8" if power else "torch.float8_e4m3fn",
    }
