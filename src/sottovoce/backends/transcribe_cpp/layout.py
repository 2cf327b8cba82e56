"""How a model family is laid out in a GGUF file of transcribe.cpp."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sottovoce.backends.gguf_common import pieces_by_id
from sottovoce.backends.source import Source

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


def tokens_by_id(source: Source, types: Callable[[str, bool], int]) -> tuple[list[str], list[int]]:
    """Pieces and their types (`types(piece, special)`), by id, for all rows of the embedding."""
    pieces = pieces_by_id(source)
    return [piece for piece, _ in pieces], [types(piece, special) for piece, special in pieces]
