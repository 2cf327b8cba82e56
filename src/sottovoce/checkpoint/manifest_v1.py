"""Manifests of format version 1 (sottovoce 0.1.0), read as those of version 2.

A folder of that version has no plan: it is put together from the layers in the manifest, their description in `config.json`, and the
shapes of the stored codes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

METHOD_NAMES = {
    "refits": "scale_refits",
    "weigh_scales": "hessian_weighted_scales",
    "correct_residual_mlp": "correct_mlp_output",
    "correct_stream": "compensate_residual",
}
GPTQ_SETTINGS = ("damping", "act_order", "hessian_weighted_scales", "scale_refits", "absorb_bias")
OBSERVERS = {"search": "mse", "minmax": "minmax"}
ENCODER = r"(^|\.)encoder\."  # the regular expression that stood for --encoder-bits


def upgrade(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the plain data of a manifest of version 2.

    Raises `KeyError`, `TypeError`, `ValueError`, `OSError` or `SafetensorError` for what is damaged.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    recipe = dict(content["recipe"])
    number_format = _format(recipe["grid"])
    upgraded = {key: content[key] for key in ("source", "calibration", "environment", "files")}
    upgraded["recipe"] = {
        "method": _method(recipe["method"]),
        "format": number_format,
        "head_bits": recipe["head_bits"],
        "head_embedding_weight": recipe["head_identity"],
        "padding_weight": recipe["padding_weight"],
        "frame_subsampling": recipe["frame_stride"],
        "rules": [_rule(rule) for rule in recipe["rules"]],
    }
    reports = [{key: value for key, value in row.items() if key != "group_size"} for row in content["layers"]]
    upgraded["layers"] = reports
    upgraded["plan"] = {
        "target": "compressed-tensors",
        "layers": _planned(reports, config, number_format, folder / "model.safetensors"),
        "ignored": content["left_in_floating_point"],
    }
    if (confidence := content.get("confidence")) is not None:
        fitted = {key.replace("_trust", "_metrics"): value for key, value in confidence.items() if key not in ("data", "seed")}
        for name in ("raw_metrics", "temperature_metrics", "platt_metrics"):
            fitted[name] = {key.replace("normalised", "normalized"): value for key, value in fitted[name].items()}
        upgraded["confidence"] = {"fitted": fitted, "data": confidence["data"], "seed": confidence["seed"]}
    return upgraded


def _format(grid: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": "affine",
        "bits": grid["bits"],
        "group_size": grid["group_size"],
        "symmetric": grid["symmetric"],
        "observer": OBSERVERS[grid["scale"]],
        "float16_min": grid["exact_minimum"],
    }


def _method(method: Mapping[str, Any]) -> dict[str, Any]:
    kind = method["kind"]
    if kind != "gptq":
        return {"algorithm": kind}
    settings = {METHOD_NAMES.get(key, key): value for key, value in method.items() if key not in ("kind", "order")}
    settings["act_order"] = method["order"] == "activation"
    if method["strength"] == 0:
        return {"algorithm": "gptq", **{key: settings[key] for key in GPTQ_SETTINGS}}
    return {"algorithm": "fade" if isinstance(method["strength"], str) else "qep", **settings}


def _rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    layers = {"part": "encoder"} if rule["match"] == ENCODER else {"match": rule["match"]}
    return layers | {key: rule[key] for key in ("bits", "group_size", "symmetric")}


def _planned(
    reports: list[dict[str, Any]], config: Mapping[str, Any], number_format: Mapping[str, Any], weights_file: Path
) -> list[dict[str, Any]]:
    """The planned layers, in the order of `config.json`."""
    part_of = {report["name"]: report["part"] for report in reports}
    planned = []
    with safe_open(weights_file, "pt") as file:
        for group in config["quantization_config"]["config_groups"].values():
            weights, targets = group["weights"], list(group["targets"])
            own = {"bits": weights["num_bits"], "group_size": weights["group_size"], "symmetric": weights["symmetric"]}
            for name, following in zip(targets, [*targets[1:], None], strict=True):
                if name not in part_of:
                    continue  # the embedding, which follows the head that it is tied to
                tied = following if part_of[name] == "head" else None
                planned.append(
                    {
                        "name": name,
                        "part": part_of[name],
                        "format": {**number_format, **own},
                        "shape": file.get_tensor(f"{tied or name}.weight_shape").tolist(),
                        "tie_group": tied,
                    }
                )
    return planned
