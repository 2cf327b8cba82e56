"""What the records of all backends with ggml's blocks have in common. Imports nothing heavy until it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sottovoce.backends.backend import ORIGIN, StoredType

if TYPE_CHECKING:
    from pathlib import Path

    from sottovoce.core.number_format import NumberFormat
    from sottovoce.core.qtensor import QuantizedTensor


def refusal(runtime: str, types: Sequence[str], number_format: NumberFormat, _part: str, in_features: int) -> str | None:
    """Say why `runtime`, which executes the block types `types`, takes no layer of that format; None if it does."""
    from sottovoce.backends import ggml_blocks

    return ggml_blocks.refusal(runtime, types, number_format, in_features)


def stored(number_format: NumberFormat) -> StoredType:
    """Return what a layer of that format becomes in a file of blocks."""
    from sottovoce.backends.ggml_blocks import kind_of, stored_type

    return stored_type(str(kind_of(number_format)))


def origin(file: Path) -> str | None:
    """Return what a GGUF file says of the quantized folder that it was written from; None: nothing."""
    from sottovoce.backends.gguf_common import require_gguf

    field = require_gguf().GGUFReader(file).get_field(ORIGIN)
    return None if field is None else str(field.contents())


def tensor_bytes(weight: QuantizedTensor, _part: str) -> int:
    """Return what a weight takes in a file of blocks."""
    from sottovoce.backends.ggml_blocks import to_blocks

    return int(to_blocks("layer", weight)[1].nbytes)
