"""Write a quantized recognizer as a folder that `transformers` and vLLM load without this package.

`sottovoce.json` carries the plan, the recipe, the calibration samples, versions, per-layer diagnostics and a sha256 of every other
file.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save, save_file
from torch import Tensor

from sottovoce.checkpoint.layout import CARD, CONFIG, WEIGHTS, layer_tensors, quantization_config, stored_name
from sottovoce.checkpoint.manifest import MANIFEST, FileRecord, Manifest, write_manifest, written_files
from sottovoce.checkpoint.model_card import model_card
from sottovoce.errors import CheckpointError, OutputError
from sottovoce.evaluation.context import ShortContext
from sottovoce.models.readiness import write_generation_config
from sottovoce.quantization.fit_record import FitRecord
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.tune_record import TuneRecord
from sottovoce.system.atomic_files import built_beside, real_place, sha256, swap_in
from sottovoce.system.other_files import other_files
from sottovoce.system.versions import environment

METADATA = {"format": "pt"}  # of the file of weights


@dataclass(frozen=True, kw_only=True)
class History:
    """What else a manifest tells of how a folder was made: `fit`: how its plan was chosen; `tune`: how it was tuned, `short_context`: for
    which contexts; `chosen_on`: hashes of the recordings by which it was chosen from others."""

    fit: FitRecord | None = None
    tune: TuneRecord | None = None
    short_context: ShortContext | None = None
    chosen_on: tuple[str, ...] = ()


def save_quantized(result: QuantizedModel, folder: Path | str, *, overwrite: bool = False, history: History | None = None) -> Path:
    """Write `result` to `folder`, whole or not at all: it is built beside it and renamed.

    Raises `OutputError` if the folder exists (unless `overwrite`) or cannot be written; what was there then stays.
    """
    target = real_place(folder)
    refuse_existing(target, overwrite=overwrite)
    with built_beside(target) as build:
        content = build / target.name
        content.mkdir(mode=0o755)
        _write_files(result, content, history or History())
        swap_in(content, target)
    return target


def output_folder(out: str | Path) -> Path:
    """Return the whole path of a folder that is to be written. Raises `OutputError` for an empty name."""
    if not str(out).strip():
        raise OutputError("the name of the output is empty; give the name of a folder")
    return real_place(out)


def weights_digest(result: QuantizedModel) -> str:
    """Return the sha256 that the file of weights has, or will have, in the folder of `result`."""
    return hashlib.sha256(save(_state(result), metadata=METADATA)).hexdigest()


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` if `target` exists and must not be replaced; only folders of ours and empty ones ever are.

    A folder of ours that also holds files of others is not replaced, since they would go with it.
    """
    if not target.exists():
        return
    if not overwrite:
        raise OutputError(f"{target} exists already; give another folder, or --overwrite to replace it")
    if not target.is_dir() or (any(target.iterdir()) and not (target / MANIFEST).is_file()):
        raise OutputError(f"{target} is not a folder written by sottovoce, so it is not replaced; remove it yourself")
    if not (target / MANIFEST).is_file():
        return
    try:
        written = written_files(target)
    except CheckpointError as exc:
        raise OutputError(f"{target} is not replaced, since it is not known which of its files are yours ({exc}); remove it") from exc
    if others := other_files(target, written):
        raise OutputError(
            f"{target} holds {others[0]}, which sottovoce did not write, so it is not replaced; move that away, or give another folder"
        )


def _write_files(result: QuantizedModel, folder: Path, history: History) -> None:
    network = result.model.network
    save_file(_state(result), folder / WEIGHTS, metadata=METADATA)
    config = network.config.to_dict() | {"dtype": "float16", "quantization_config": quantization_config(result.plan)}
    config.pop("_name_or_path", None)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_generation_config(network.generation_config, folder)
    result.model.processor.save_pretrained(folder)
    (folder / CARD).write_text(model_card(result, history.tune), encoding="utf-8")
    manifest = Manifest(
        source=result.model.source,
        recipe=result.recipe,
        plan=result.plan,
        calibration=result.calibration,
        environment=environment(),
        layers=result.reports,
        files={file.name: FileRecord(bytes=file.stat().st_size, sha256=sha256(file)) for file in sorted(folder.iterdir())},
        fit=history.fit,
        tune=history.tune,
        short_context=history.short_context,
        chosen_on=history.chosen_on,
    )
    write_manifest(folder, manifest)
    for file in folder.iterdir():
        file.chmod(0o644)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _state(result: QuantizedModel) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`. A head tied to the token embedding is stored once, under the embedding's name."""
    model, state = result.model, dict[str, Tensor]()
    packed = {stored_name(layer): result.weights[layer.name] for layer in result.plan.layers}
    once = {model.head} if model.tied else set()
    for name, tensor in model.network.state_dict().items():
        if name.removesuffix(".weight") not in packed.keys() | once:
            state[name] = tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()
    for name, weight in packed.items():
        state |= layer_tensors(name, weight)
    return {name: state[name].clone() for name in sorted(state)}
