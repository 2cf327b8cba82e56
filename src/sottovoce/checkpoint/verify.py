"""Check a quantized folder again, as far as it can be checked without the speech it was calibrated on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sottovoce.checkpoint.layout import quantization_groups
from sottovoce.checkpoint.load import load_quantized, read_weights
from sottovoce.checkpoint.manifest import MANIFEST, read_manifest
from sottovoce.core.affine import Grid
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.errors import CheckpointError, RecipeError
from sottovoce.models.load import load_model
from sottovoce.quantization.plan import resolve
from sottovoce.quantization.recipe import recipe_from


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked: `files`, `layers` and `weights` (numbers), and names of `unlisted` files that sottovoce did not write."""

    files: int
    layers: int
    weights: int
    unlisted: tuple[str, ...]


def verify(folder: str | Path) -> Verification:
    """Check every file's sha256, then that codes, scales, recipe, plan and `config.json` all say the same.

    Codes and scales must keep their invariants and lie on the grid that the recipe gives their layer; parameters in floating point
    must be finite; the recipe, applied to the model anew, must give the plan that was carried out. Raises `CheckpointError` for the
    first that fails.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    weights = read_weights(folder, manifest)
    model = load_model(folder, quantized_loader=load_quantized)
    try:
        plan = resolve(model, recipe_from(manifest["recipe"]))
    except (RecipeError, KeyError, TypeError) as exc:
        raise CheckpointError(f"{folder / MANIFEST}: its recipe does not fit its model ({exc})") from exc
    carried_out = {row["name"]: row for row in manifest["layers"]}
    if set(carried_out) != {layer.name for layer, _ in plan.layers} or manifest["left_in_floating_point"] != list(plan.ignored):
        raise CheckpointError(f"{folder / MANIFEST}: the recipe asks for other layers than were quantized")
    for layer, grid in plan.layers:
        stored = model.embedding if layer.name == model.head and model.tied else layer.name
        if stored not in weights:
            raise CheckpointError(f"{folder}: {layer.name} was quantized by {MANIFEST}, but its codes are not there")
        _check_layer(layer.name, weights[stored], grid, carried_out[layer.name])
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    if described["config_groups"] != quantization_groups(model, plan):
        raise CheckpointError(f"{folder / 'config.json'}: describes another grid than the recipe")
    listed = {*manifest["files"], MANIFEST}
    return Verification(
        files=len(listed),
        layers=len(plan.layers),
        weights=sum(weight.codes.numel() for weight in weights.values()),
        unlisted=tuple(sorted(file.name for file in folder.iterdir() if file.name not in listed)),
    )


def _check_layer(name: str, weight: QuantizedTensor, grid: Grid, row: dict[str, Any]) -> None:
    columns = weight.codes.shape[1]
    made, wanted = (weight.bits, weight.group_size, weight.symmetric), (grid.bits, grid.columns_per_group(columns), grid.symmetric)
    if made != wanted or (row["bits"], row["group_size"]) != wanted[:2] or row["weights"] != weight.codes.numel():
        raise CheckpointError(f"{name}: has bits, groups and symmetry {made}; the recipe asks for {wanted}")
    if grid.float16_min and not grid.symmetric:
        minimum = -weight.zero_point.float() * weight.scale.float()
        if not torch.equal(minimum.half().float(), minimum):
            raise CheckpointError(f"{name}: a group's minimum is not a float16 number, as its grid has them")
