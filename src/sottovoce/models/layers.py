"""Which linear layers a model has, and what each one does."""

from dataclasses import dataclass
from typing import Literal

Part = Literal["encoder", "decoder self", "decoder cross", "decoder mlp", "head"]


Positions = Literal["frames", "tokens", "all"]


@dataclass(frozen=True)
class Layer:
    """A linear layer that can be quantized."""

    name: str
    part: Part
    positions: Positions  # whether its inputs are audio frames or text tokens, some of which may be padding, or such that all count
    # A constant added to all its outputs changes nothing downstream (attention keys: the softmax cancels it), so the mean of its
    # inputs need not be matched.
    shift_invariant: bool = False
    mlp_output: bool = False  # the second linear of a feed-forward block, which QEP's published settings leave uncorrected
    # The module whose input is the residual stream that the outputs are added to; None: they go elsewhere, or it is not known.
    residual: str | None = None
    min_bits: int = 0  # bits that it keeps unless a rule asks otherwise


@dataclass(frozen=True)
class AWQMapping:
    """One foldable pair for AWQ: the output channels of `source` can be divided by what the inputs of `targets` are multiplied with.

    `source` is a LayerNorm or a Linear; all `targets` read exactly its (linearly passed-on) output.
    """

    source: str
    targets: tuple[str, ...]


def attention_layers(prefix: str, part: Part, output: str, residual: str, *, shift_invariant_keys: bool) -> list[Layer]:
    """The four projections of an attention block; `output`: what the family calls the last, whose outputs are added to the input
    of the module `residual`."""
    own: Positions = "frames" if part == "encoder" else "tokens"
    keys: Positions = "frames" if part == "decoder cross" else own
    return [
        Layer(f"{prefix}.q_proj", part, own),
        Layer(f"{prefix}.k_proj", part, keys, shift_invariant=shift_invariant_keys),
        Layer(f"{prefix}.v_proj", part, keys),
        Layer(f"{prefix}.{output}", part, own, residual=residual),
    ]


def mlp_layers(prefix: str, part: Part, residual: str) -> list[Layer]:
    """The two linears of a feed-forward block, whose outputs are added to the input of the module `residual`."""
    positions: Positions = "frames" if part == "encoder" else "tokens"
    return [Layer(f"{prefix}.fc1", part, positions), Layer(f"{prefix}.fc2", part, positions, mlp_output=True, residual=residual)]
