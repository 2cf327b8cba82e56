"""Check a quantized folder again, as far as it can be checked without the speech it was calibrated on."""

import json
from dataclasses import dataclass
from pathlib import Path

from sottovoce.checkpoint.layout import CONFIG, quantization_config
from sottovoce.checkpoint.load import open_folder
from sottovoce.checkpoint.manifest import MANIFEST
from sottovoce.errors import CheckpointError
from sottovoce.models.load import local_folder
from sottovoce.system.other_files import other_files


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked: `files`, `layers` and `weights` (numbers), and names of `unlisted` files that sottovoce did not write."""

    files: int
    layers: int
    weights: int
    unlisted: tuple[str, ...]


def verify(folder: str | Path) -> Verification:
    """Check every file's sha256, then that codes, parameters, plan, reports and `config.json` all say the same.

    Codes and parameters must be as the plan's number format stores them, the plan must name the model's layers, and what stays in
    floating point must be finite. Raises `CheckpointError` for the first that fails.
    """
    folder = local_folder(folder)
    opened = open_folder(folder)
    manifest, plan = opened.manifest, opened.manifest.plan
    named = {layer.name for layer in plan.layers} | set(plan.ignored)
    if odd := sorted(named ^ {layer.name for layer in opened.model.layers()}):
        raise CheckpointError(
            f"{folder / MANIFEST}: the plan and the model do not have the same layers; the first that differs is {odd[0]!r}"
        )
    reports = {report.name: report for report in manifest.layers}
    for layer in plan.layers:
        report = reports.pop(layer.name, None)
        if report is None or (report.part, report.bits, report.weights) != (layer.part, layer.format.code_bits, layer.weights):
            raise CheckpointError(f"{folder / MANIFEST}: plan and report of {layer.name} do not agree")
    if reports:
        raise CheckpointError(f"{folder / MANIFEST}: reports on {min(reports)!r}, which is not in the plan")
    described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["quantization_config"]
    if described != quantization_config(plan):
        raise CheckpointError(f"{folder / CONFIG}: describes another quantization than the plan")
    listed = {*manifest.files, MANIFEST}
    return Verification(
        files=len(listed),
        layers=len(plan.layers),
        weights=plan.weights,
        unlisted=tuple(other_files(folder, listed)),
    )
