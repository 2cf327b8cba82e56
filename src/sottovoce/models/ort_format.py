"""Constants and nodes of a model in ONNX Runtime's own format (`.ort`, a flatbuffer), read by the readers that ONNX Runtime ships."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.errors import MissingDependencyError, ModelError

DTYPES = {1: np.float32, 3: np.int8, 7: np.int64}  # of TensorProto.DataType; the others are not read
IDENTIFIER, IDENTIFIER_AT = b"ORTM", 4  # in the first bytes of every such file
QUANTIZED, SCALE, OFFSET, RESTORED = "_quantized", "_scale", "_zero_point", "_add_tensor"


@dataclass(frozen=True)
class Node:
    """An operation: its name in the graph and the names of its inputs."""

    name: str
    operator: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class OrtModel:
    """`constants`: arrays by name, of float32, int8 or int64. `nodes`: by name; of an `If`, those of its else-branch."""

    constants: dict[str, np.ndarray]
    nodes: dict[str, Node]

    def weight(self, name: str) -> np.ndarray | None:
        """Return the float32 values of the constant that a node knows as `name`, or None where that is no such constant.

        A weight stored in 8 bits is three constants, `q` (int8), `scale` and `zero_point` (float32, `[1]`), and the graph restores
        `q * scale + zero_point` in float32: the "zero point" is an offset in units of the weight. Computed here in the same order.
        """
        base = name.removesuffix(RESTORED)
        if base != name and base + QUANTIZED in self.constants:
            scaled = self.constants[base + QUANTIZED].astype(np.float32) * self.constants[base + SCALE]
            return np.asarray(scaled + self.constants[base + OFFSET], dtype=np.float32)
        found = self.constants.get(name)
        return found if found is not None and found.dtype == np.float32 else None


def read_ort(file: Path) -> OrtModel:
    """Read a `.ort` file.

    Raises `MissingDependencyError` without onnxruntime, `ModelError` if the file is not of this format.
    """
    try:
        import onnxruntime.tools.ort_format_model  # noqa: F401 - puts the readers on the path
        from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession
    except ImportError as exc:
        raise MissingDependencyError(".ort files are read with onnxruntime; install it with: pip install onnxruntime") from exc
    raw = file.read_bytes()
    if raw[IDENTIFIER_AT : IDENTIFIER_AT + len(IDENTIFIER)] != IDENTIFIER:
        raise ModelError(f"{file}: not a model in ONNX Runtime's format")
    graph = InferenceSession.GetRootAs(raw, 0).Model().Graph()
    constants = dict(_constants(graph))
    return OrtModel(constants, {node.name: node for node in _nodes(graph)})


def _constants(graph: Any) -> Iterator[tuple[str, np.ndarray]]:
    for i in range(graph.InitializersLength()):
        tensor = graph.Initializers(i)
        dtype = DTYPES.get(tensor.DataType())
        if dtype is not None and not tensor.RawDataIsNone():
            shape = () if tensor.DimsIsNone() else tensor.DimsAsNumpy()
            yield tensor.Name().decode(), tensor.RawDataAsNumpy().view(dtype).reshape(shape)


def _nodes(graph: Any) -> Iterator[Node]:
    for i in range(graph.NodesLength()):
        node = graph.Nodes(i)
        yield Node(node.Name().decode(), node.OpType().decode(), tuple(node.Inputs(j).decode() for j in range(node.InputsLength())))
        for attribute in (node.Attributes(j) for j in range(node.AttributesLength())):
            if attribute.Name() == b"else_branch":
                yield from _nodes(attribute.G())
