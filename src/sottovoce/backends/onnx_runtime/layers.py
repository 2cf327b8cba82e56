"""Which operator a quantized layer becomes, by its number format."""

from torch import Tensor, nn

from sottovoce.backends.onnx_runtime.nf4_operators import NF4Embedding, NF4Linear
from sottovoce.backends.onnx_runtime.operators import ACTIVATIONS, Int8Linear, NBitsEmbedding, NBitsLinear
from sottovoce.backends.source import affine_parts
from sottovoce.core.nf4 import NF4
from sottovoce.core.qtensor import QuantizedTensor


def low_bit_linear(name: str, quantized: QuantizedTensor, bias: Tensor | None, activations: str) -> nn.Module:
    """Make the operator for a linear layer of these codes. `activations`: "int8" or "float32" inputs.

    Raises `ExportError` if no operator holds the format.
    """
    if isinstance(quantized.format, NF4):
        return NF4Linear(quantized, bias)
    weight = affine_parts(name, quantized)
    whole_rows = weight.symmetric and weight.bits == 8 and weight.scale.shape[1] == 1
    if whole_rows and activations == "int8":
        return Int8Linear(weight, bias)
    return NBitsLinear(name, weight, bias, activations)


def head_and_embedding(name: str, quantized: QuantizedTensor, activations: str) -> tuple[nn.Module, nn.Module]:
    """Make the output head, and the token embedding that looks up in the same codes. Raises `ExportError` as `low_bit_linear` does."""
    if isinstance(quantized.format, NF4):
        nf4 = NF4Linear(quantized, None)
        return nf4, NF4Embedding(nf4)
    head = NBitsLinear(name, affine_parts(name, quantized), None, activations)
    return head, NBitsEmbedding(head)


def stored_bytes(weight: QuantizedTensor, *, head: bool) -> int:
    """Return the bytes of a weight's tensors in the file, by default of `activations`; a `head` is never stored as 8-bit rows."""
    activations = next(iter(ACTIVATIONS))
    module = head_and_embedding("layer", weight, activations)[0] if head else low_bit_linear("layer", weight, None, activations)
    return sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
