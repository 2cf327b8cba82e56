"""Products of bytes in ONNX Runtime, whose sums saturate on some processors."""

import mmap
from pathlib import Path

from sottovoce.system.notices import notice
from sottovoce.system.versions import processor, sums_of_bytes_saturate

BYTES_OPERATOR = b"DynamicQuantizeMatMul"


def name_saturation(model: str, encoder: Path) -> None:
    """Say so where the file `encoder` of `model` multiplies bytes and this processor adds them up with saturation."""
    if sums_of_bytes_saturate(processor()) and _multiplies_bytes(encoder):
        notice(
            f"{model}: its encoder multiplies bytes, whose sums may saturate on this processor (x86 without VNNI instructions), which "
            "costs words; compare with `sottovoce evaluate --against`, or export it with --activations float32"
        )


def _multiplies_bytes(graph: Path) -> bool:
    """Whether the graph names the operator; the file, which may be large, is not read into memory."""
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(BYTES_OPERATOR) >= 0
