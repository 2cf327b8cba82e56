"""GGUF for transcribe.cpp: block types per tensor, float16 for the other matrices, tokenizer and all settings inside."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.errors import ExportError, MissingDependencyError
from sottovoce.formats.blocks import FILE_TYPES, to_blocks
from sottovoce.formats.source import Source

TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_BYTE = 1, 2, 3, 6


@dataclass(frozen=True)
class Layout:
    """One family in GGUF.

    `names`: how parameters are called there, by their name in `transformers`; `float32`: which of these the runtime wants
    in float32 whatever their shape; `settings`: writes the metadata; `inputs`: further float32 tensors.
    """

    architecture: str
    names: Callable[[Source], dict[str, str]]
    float32: Callable[[str], bool]
    settings: Callable[[Source, Any], None]
    inputs: Callable[[Source], dict[str, np.ndarray]]


def write_gguf(source: Source, file: Path) -> dict[str, str]:
    """Write `file`; what each quantized tensor became, by its name in `transformers`.

    Raises `ExportError` for a family or a grid that the runtime cannot hold, before anything is written.
    """
    from sottovoce.formats.families import GGUF_LAYOUTS

    gguf = require_gguf()
    if source.family not in GGUF_LAYOUTS:
        raise ExportError(
            f"a {source.family!r} model has no GGUF layout here; there are {', '.join(sorted(GGUF_LAYOUTS))}; "
            "its folder runs in transformers as it is"
        )
    layout = GGUF_LAYOUTS[source.family]
    names, floats = layout.names(source), source.floats()
    if missing := sorted(names.keys() ^ floats.keys()):
        raise ExportError(f"the model's parameter {missing[0]!r} has no place in the {layout.architecture} layout")
    blocks = {name: to_blocks(name, weight) for name, weight in source.weights.items()}
    types: dict[str, str] = {name: kind for name, (kind, _) in blocks.items()}
    most = max(types.values(), key=lambda kind: sum(source.weights[n].codes.numel() for n in types if types[n] == kind)) if types else "F16"
    writer = gguf.GGUFWriter(str(file), layout.architecture)
    writer.add_string("general.basename", layout.architecture)
    writer.add_string("general.size_label", _size_label(sum(array.size for array in floats.values())))
    writer.add_uint32("general.file_type", FILE_TYPES[most])
    writer.add_uint32("general.quantization_version", 2)
    writer.add_string("stt.variant", source.name)
    layout.settings(source, writer)
    for name, array in layout.inputs(source).items():
        writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
    for name, called in names.items():
        module = name.removesuffix(".weight")
        if module in blocks:
            kind, data = blocks[module]
            writer.add_tensor(called, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            wide = floats[name].ndim < 2 or layout.float32(name)
            writer.add_tensor(called, np.ascontiguousarray(floats[name], np.float32 if wide else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return types


def require_gguf() -> Any:
    """The package `gguf`. Raises `MissingDependencyError`."""
    try:
        import gguf
    except ImportError as exc:
        raise MissingDependencyError("writing GGUF needs the package gguf; pip install 'sottovoce[gguf]'") from exc
    return gguf


def parameter_names(source: Source, top: dict[str, str], encoder: dict[str, str], decoder: dict[str, str]) -> dict[str, str]:
    """How parameters are called in GGUF, from tables of module names: whole ones in `top`, within a layer in the others."""
    modules = dict(top)
    for half, short, table in (("encoder", "enc", encoder), ("decoder", "dec", decoder)):
        for i in range(len(source.model.network.get_submodule(f"model.{half}.layers"))):
            modules |= {f"model.{half}.layers.{i}.{old}": f"{short}.blocks.{i}.{new}" for old, new in table.items()}
    split = ((parameter, *parameter.rpartition(".")[::2]) for parameter in source.floats())
    return {parameter: f"{modules[module]}.{kind}" for parameter, module, kind in split if module in modules}


def tokens_by_id(source: Source, types: Callable[[str, bool], int]) -> tuple[list[str], list[int]]:
    """Pieces and their types (`types(piece, special)`), by id, for all rows of the embedding."""
    content = source.tokenizer()
    found: dict[int, tuple[str, bool]] = {index: (piece, False) for piece, index in content["model"]["vocab"].items()}
    for entry in content.get("added_tokens", []):
        found[entry["id"]] = (entry["content"], bool(entry.get("special")))
    size = source.config.vocab_size
    if found and max(found) >= size:
        raise ExportError(f"the tokenizer has an id {max(found)}, the model only {size} tokens")
    pieces = [found.get(i, (f"<|unused_{i}|>", False)) for i in range(size)]
    return [piece for piece, _ in pieces], [types(piece, special) for piece, special in pieces]


def merges(source: Source) -> list[str]:
    """The merges of the byte-pair encoding, as text."""
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in source.tokenizer()["model"].get("merges", [])]


def _size_label(parameters: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M")):
        if parameters >= size:
            return f"{parameters / size:.1f}{letter}" if letter == "B" else f"{parameters / size:.0f}{letter}"
    return f"{parameters / 1000:.0f}K"
