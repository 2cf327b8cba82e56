"""Which files of a model's folder hold the weights that are loaded. Imports nothing heavy."""

from pathlib import Path

from sottovoce.system.json_object import json_object_or_empty

CONFIG = "config.json"
MANIFEST = "sottovoce.json"  # of a folder that sottovoce wrote
CTRANSLATE2 = "model.bin"  # of faster-whisper
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as the loader of transformers looks for them, each before its index
INDEX = ".index.json"  # names the files of weights in several


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that are loaded of `folder`: one, or those that an index names; none if there are none."""
    if (folder / CTRANSLATE2).is_file() and not (folder / MANIFEST).is_file():
        return [folder / CTRANSLATE2]
    named = json_object_or_empty(folder / CONFIG).get("transformers_weights")
    wanted = [named] if isinstance(named, str) else [name for weights in WEIGHTS for name in (weights, f"{weights}{INDEX}")]
    found = next((folder / name for name in wanted if (folder / name).is_file()), None)
    if found is None:
        return []
    index = json_object_or_empty(found).get("weight_map") if found.name.endswith(INDEX) else None
    return [folder / name for name in sorted(set(map(str, index.values())))] if isinstance(index, dict) and index else [found]


def holds_model(folder: Path) -> bool:
    """Whether `folder` holds a model that PyTorch loads: its description and weights."""
    return (folder / CONFIG).is_file() and bool(weight_files(folder))
