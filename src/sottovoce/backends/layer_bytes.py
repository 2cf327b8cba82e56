"""What a layer takes in a backend's file, found by packing a few of its rows, so that new formats need no table."""

from functools import cache

import torch

from sottovoce.backends.backend import Backend
from sottovoce.backends.registry import backend_named
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.errors import CheckpointError
from sottovoce.quantization.plan import Plan

WIDEST = 1 << 20  # inputs of a layer; what a damaged plan says more would fill the memory
ROWS = 32  # packed; some formats pack rows together, by 16 at most


def zero_weight(number_format: NumberFormat, out_features: int, in_features: int) -> QuantizedTensor:
    """Return a weight of that shape whose codes and parameters are those of a row of zeros."""
    row = torch.zeros(1, in_features)
    parameters = number_format.fit(row)
    codes = number_format.encode(row, parameters).expand(out_features, -1)
    rows = {name: tensor.expand(out_features, *tensor.shape[1:]) for name, tensor in parameters.items()}
    return QuantizedTensor.from_codes(codes, rows, number_format)


@cache
def _bytes_of_rows(backend: str, number_format: NumberFormat, part: str, rows: int, in_features: int) -> int:
    return backend_named(backend).tensor_bytes(zero_weight(number_format, rows, in_features), part)


def planned_bytes(plan: Plan) -> dict[str, int]:
    """Return the bytes of every planned layer's weight in the file of the plan's target, by name."""
    backend = backend_named(plan.target)
    return {layer.name: layer_bytes(backend, layer.format, layer.part, layer.shape) for layer in plan.layers}


def widened_layers(plan: Plan) -> list[str]:
    """Name the layers whose codes are narrower than what holds them in the file of the plan's target."""
    stored = backend_named(plan.target).stored
    return [] if stored is None else [layer.name for layer in plan.layers if stored(layer.format).bits > layer.format.code_bits]


def layer_bytes(backend: Backend, number_format: NumberFormat, part: str, shape: tuple[int, int]) -> int:
    """Return the bytes of a layer's weight `[out, in]` in the file of `backend`: what grows with its rows, and what does not.

    Raises `CheckpointError` for more inputs than any network has.
    """
    rows, in_features = shape
    if in_features > WIDEST:
        raise CheckpointError(f"a layer of {in_features} inputs is planned, and {WIDEST} at most are possible; the plan is damaged")
    few, twice = (_bytes_of_rows(backend.name, number_format, part, count, in_features) for count in (ROWS, 2 * ROWS))
    each = (twice - few) / ROWS
    return round(few + (rows - ROWS) * each)
