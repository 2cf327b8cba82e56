"""What writers of GGUF files for more than one runtime share."""

import re
from typing import Any

import numpy as np

from sottovoce.backends.source import Source
from sottovoce.errors import ExportError, MissingDependencyError

BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token of byte fallback


def require_gguf() -> Any:
    """The package `gguf`. Raises `MissingDependencyError`."""
    try:
        import gguf
    except ImportError as exc:
        raise MissingDependencyError("writing GGUF needs the package gguf; pip install 'sottovoce[gguf]'") from exc
    return gguf


def add_origin(source: Source, writer: Any) -> None:
    """Write which quantized folder a file comes from."""
    for key, value in source.origin.items():
        writer.add_string(key, value)


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


def periodic_hann(length: int) -> np.ndarray:
    """The window of a spectrum, float32 `[length]`, which `transformers` computes from the settings."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def merges(source: Source) -> list[str]:
    """The merges of the byte-pair encoding, as text."""
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in source.tokenizer()["model"].get("merges", [])]


def require_moonshine(source: Source, runtime: str) -> None:
    """Raise `ExportError` if a Moonshine is built in another way than the published ones, which `runtime` does not compute."""
    config = source.config
    if (config.encoder_hidden_act, config.decoder_hidden_act) != ("gelu", "silu") or config.attention_bias or not source.model.tied:
        raise ExportError(f"{runtime} runs Moonshine only with GELU, SiLU, no biases in attention and a head tied to the token embedding")
