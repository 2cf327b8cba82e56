"""How a model family is laid out in a GGUF file of transcribe.cpp."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sottovoce.backends.source import Source
from sottovoce.errors import ExportError

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


def parameter_names(source: Source, top: dict[str, str], encoder: dict[str, str], decoder: dict[str, str]) -> dict[str, str]:
    """How parameters are called in GGUF, from tables of module names: whole ones in `top`, within a layer in the others."""
    modules = dict(top)
    for half, short, table in (("encoder", "enc", encoder), ("decoder", "dec", decoder)):
        for i in range(len(source.model.network.get_submodule(f"model.{half}.layers"))):
            modules |= {f"model.{half}.layers.{i}.{old}": f"{short}.blocks.{i}.{new}" for old, new in table.items()}
    split = ((parameter, *parameter.rpartition(".")[::2]) for parameter in source.floats())
    return {parameter: f"{modules[module]}.{kind}" for parameter, module, kind in split if module in modules}


def pieces_by_id(source: Source, unused: str = "<|unused_{}|>") -> list[tuple[str, bool]]:
    """Pieces, and whether they are special, by id, for all rows of the embedding. `unused`: what a row without a token is called."""
    content = source.tokenizer()
    found: dict[int, tuple[str, bool]] = {index: (piece, False) for piece, index in content["model"]["vocab"].items()}
    for entry in content.get("added_tokens", []):
        found[entry["id"]] = (entry["content"], bool(entry.get("special")))
    size = source.model.vocabulary_size
    if found and max(found) >= size:
        raise ExportError(f"the tokenizer has an id {max(found)}, the model only {size} tokens; restore the model's tokenizer files")
    return [found.get(i, (unused.format(i), False)) for i in range(size)]


def tokens_by_id(source: Source, types: Callable[[str, bool], int]) -> tuple[list[str], list[int]]:
    """Pieces and their types (`types(piece, special)`), by id, for all rows of the embedding."""
    pieces = pieces_by_id(source)
    return [piece for piece, _ in pieces], [types(piece, special) for piece, special in pieces]


def periodic_hann(length: int) -> np.ndarray:
    """The window of a spectrum, float32 `[length]`, which `transformers` computes from the settings."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def merges(source: Source) -> list[str]:
    """The merges of the byte-pair encoding, as text."""
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in source.tokenizer()["model"].get("merges", [])]
