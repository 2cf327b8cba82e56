"""NF4 in ONNX Runtime: `com.microsoft.MatMulBnb4`, and a token embedding that looks packed rows up.

MatMulBnb4: B uint8 `[N * K / 2]`, the earlier of two codes in the high bits; absmax float `[N * K / block]`, what 1.0 stands for in each
block; `y = x @ dequantize(B).T`. It decodes the whole matrix at every call, so it saves room and not time on a CPU. There is no operator
that looks rows up in such a matrix: that is done by plain ones. Source: onnxruntime, `docs/ContribOperators.md`,
`blockwise_quant_block_bnb4.h`.
"""

import torch
from torch import Tensor, nn

from sottovoce.backends.onnx_runtime.operators import operator_node
from sottovoce.core.nf4 import LEVELS
from sottovoce.core.qtensor import QuantizedTensor

NF4_TYPE = 1  # `quant_type` of the operator; 0 is FP4


class NF4Linear(nn.Module):
    """A linear layer as `MatMulBnb4`; its inputs are not rounded."""

    codes: Tensor
    scales: Tensor
    bias: Tensor | None
    shape: tuple[int, ...]

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape = tuple(weight.codes.shape)
        self.codes = nn.Buffer(weight.codes[:, 0::2] << 4 | weight.codes[:, 1::2])
        self.scales = nn.Buffer(weight.parameters["scale"].contiguous())
        self.block = self.shape[1] // self.scales.shape[1]
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        product = operator_node(
            "MatMulBnb4",
            [x, self.codes.flatten(), self.scales.flatten().float()],
            (*x.shape[:-1], self.shape[0]),
            K=self.shape[1],
            N=self.shape[0],
            block_size=self.block,
            quant_type=NF4_TYPE,
        )
        return product if self.bias is None else product + self.bias


class NF4Embedding(nn.Module):
    """A token embedding over the codes of the head that it shares them with."""

    def __init__(self, head: NF4Linear) -> None:
        super().__init__()
        self.head = head
        self.levels = nn.Buffer(torch.tensor(LEVELS))
        self.weight = torch.empty(0)  # `transformers` asks for its device only

    def forward(self, ids: Tensor) -> Tensor:
        head, flat = self.head, ids.flatten()
        rows = head.codes.index_select(0, flat).to(torch.int64)
        codes = torch.stack([rows // 16, rows % 16], -1)
        blocks = self.levels.index_select(0, codes.flatten()).view(*flat.shape, -1, head.block)
        values = blocks * head.scales.index_select(0, flat).float().unsqueeze(-1)
        return values.view(*ids.shape, head.shape[1])
