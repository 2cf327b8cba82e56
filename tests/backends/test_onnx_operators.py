"""Packed codes against ONNX Runtime's own operators."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sottovoce.backends.onnx_runtime.layers import stored_bytes
from sottovoce.backends.onnx_runtime.nf4_operators import NF4_TYPE, NF4Embedding, NF4Linear
from sottovoce.backends.onnx_runtime.operators import packed, runtime_bits
from sottovoce.backends.source import affine_parts
from sottovoce.core.affine import Affine
from sottovoce.core.nf4 import NF4
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.rtn import rtn
from sottovoce.errors import ExportError


def run(op: str, inputs: list[np.ndarray | None], names: list[str], given: str, **attributes: int) -> np.ndarray:
    """One operator of `com.microsoft` with everything but the input `given` as constants."""
    node = helper.make_node(op, [n if a is not None else "" for n, a in zip(names, inputs, strict=True)], ["y"],
                            domain="com.microsoft", **attributes)  # fmt: skip
    array = inputs[names.index(given)]
    assert array is not None
    kind = TensorProto.FLOAT if array.dtype == np.float32 else TensorProto.INT64
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(given, kind, list(array.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in zip(names, inputs, strict=True) if a is not None and n != given],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)], ir_version=10)
    session = onnxruntime.InferenceSession(onnx.ModelProto.SerializeToString(model), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {given: array})[0]
    return result


def quantized(bits: int, group: int | None, symmetric: bool) -> QuantizedTensor:
    weight = torch.randn(24, 384, generator=torch.Generator().manual_seed(bits))
    return rtn(weight, Affine(bits=bits, group_size=group, symmetric=symmetric))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 128, None])
@pytest.mark.parametrize("symmetric", [False, True])
def test_matmulnbits_computes_with_the_very_same_numbers(bits: int, group: int | None, symmetric: bool) -> None:
    """Multiplied with the identity in float32, the operator gives back every weight, bit for bit."""
    weight = quantized(bits, group, symmetric)
    tensors = packed("w", affine_parts("w", weight))
    block = 384 // tensors["scales"].shape[1]
    zero = tensors.get("zero_points")
    got = run(
        "MatMulNBits",
        [np.eye(384, dtype=np.float32), tensors["codes"].numpy(), tensors["scales"].float().numpy(),
         None if zero is None else zero.numpy()],
        ["x", "codes", "scales", "zero"], "x", K=384, N=24, bits=runtime_bits(bits), block_size=block, accuracy_level=1,
    )  # fmt: skip
    assert np.array_equal(got.T, weight.dequantize().numpy())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gatherblockquantized_looks_up_the_very_same_numbers(bits: int, symmetric: bool) -> None:
    weight = quantized(bits, 32, symmetric)
    tensors = packed("w", affine_parts("w", weight))
    zero = tensors.get("zero_points")
    ids = np.array([[3, 0], [23, 3]])
    got = run(
        "GatherBlockQuantized",
        [tensors["codes"].flatten(1).numpy(), ids, tensors["scales"].float().numpy(), None if zero is None else zero.numpy()],
        ["codes", "ids", "scales", "zero"], "ids", bits=bits, block_size=32, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    assert np.array_equal(got, weight.dequantize().numpy()[ids])


def test_groups_that_are_no_power_of_two_are_split_and_others_refused() -> None:
    assert packed("w", affine_parts("w", rtn(torch.randn(2, 96), Affine(bits=4, group_size=None))))["scales"].shape == (2, 3)
    with pytest.raises(ExportError, match=r"w: groups of 72 .* --group-size 32"):
        packed("w", affine_parts("w", rtn(torch.randn(2, 72), Affine(bits=4, group_size=None))))


@pytest.mark.parametrize("group", [32, 64, 128])
def test_matmulbnb4_computes_with_the_very_same_numbers(group: int) -> None:
    """Multiplied with the identity, the operator gives back every weight, bit for bit; the embedding's rows are the same."""
    weight = rtn(torch.randn(24, 384, generator=torch.Generator().manual_seed(group)), NF4(group_size=group))
    layer = NF4Linear(weight, None)
    got = run(
        "MatMulBnb4",
        [np.eye(384, dtype=np.float32), layer.codes.flatten().numpy(), layer.scales.flatten().float().numpy()],
        ["x", "codes", "scales"], "x", K=384, N=24, block_size=group, quant_type=NF4_TYPE,
    )  # fmt: skip
    assert np.array_equal(got.T, weight.dequantize().numpy())
    ids = torch.tensor([[3, 0], [23, 3]])
    assert torch.equal(NF4Embedding(layer)(ids), weight.dequantize()[ids])
    assert stored_bytes(weight, head=True) == 24 * 384 // 2 + 2 * 24 * 384 // group
