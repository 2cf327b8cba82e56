"""What ranks send each other about finished layers and scales: tensors with plain data, as bytes."""

import json
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.quantization.layer import LayerReport, LayerResult
from sottovoce.system.plain_data import from_plain, to_plain
from sottovoce.system.ranks import Ranks

ABOUT, BIAS, WEIGHT = "about", "bias", "weight."


@dataclass(frozen=True, kw_only=True)
class _About:
    format: NumberFormat
    report: LayerReport


def broadcast_layer(ranks: Ranks, result: LayerResult | None) -> LayerResult:
    """Return the finished layer that rank 0 gives, on every rank. Raises `MachineError`."""
    if ranks.size == 1 and result is not None:
        return result
    received = ranks.broadcast(None if result is None else _to_bytes(result))
    return _from_bytes(received) if result is None else result


def broadcast_layers(ranks: Ranks, finished: dict[str, LayerResult]) -> dict[str, LayerResult]:
    """Return the finished layers of rank 0, in their order, on every rank. Raises `MachineError`."""
    names = ranks.exchange(list(finished))[0]
    return {name: broadcast_layer(ranks, finished[name] if ranks.leads else None) for name in names}


def broadcast_tensor(ranks: Ranks, tensor: Tensor | None) -> Tensor:
    """Return the tensor that rank 0 gives, on every rank (the CPU's elsewhere). Raises `MachineError`."""
    if ranks.size == 1 and tensor is not None:
        return tensor
    received = ranks.broadcast(None if tensor is None else save({WEIGHT: tensor.cpu().contiguous()}))
    return load(received)[WEIGHT] if tensor is None else tensor


def _to_bytes(result: LayerResult) -> bytes:
    about = json.dumps(to_plain(_About(format=result.weight.format, report=result.report))).encode()
    tensors = {f"{WEIGHT}{name}": tensor.contiguous() for name, tensor in result.weight.pack().items()}
    tensors[ABOUT] = torch.frombuffer(bytearray(about), dtype=torch.uint8)
    if result.bias is not None:
        tensors[BIAS] = result.bias.contiguous()
    return bytes(save(tensors))


def _from_bytes(data: bytes) -> LayerResult:
    tensors = load(data)
    about = from_plain(_About, json.loads(tensors.pop(ABOUT).numpy().tobytes()))
    bias = tensors.pop(BIAS, None)
    weight = QuantizedTensor.unpack({name.removeprefix(WEIGHT): tensor for name, tensor in tensors.items()}, about.format)
    return LayerResult(weight, bias, about.report)
