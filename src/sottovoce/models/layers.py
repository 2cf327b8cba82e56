"""Which linear layers a model has, and what each one does."""

from dataclasses import dataclass
from typing import Literal

Part = Literal["encoder", "decoder self", "decoder cross", "decoder mlp", "head"]


Positions = Literal["frames", "tokens", "all"]


@dataclass(frozen=True)
class Layer:
    """A linear layer that can be quantized.

    `positions`: whether its inputs are audio frames or text tokens, some of which may be padding, or such that all count.
    `shift_invariant`: a constant added to all its outputs
    changes nothing downstream (attention keys: the softmax cancels it), so the mean of its inputs need not be matched.
    `mlp_output`: it is the second linear of a feed-forward block, which QEP's published settings leave uncorrected.
    `stream`: the module whose input is the residual stream that the outputs are added to, None: they go elsewhere, or it is not known.
    """

    name: str
    part: Part
    positions: Positions
    shift_invariant: bool = False
    mlp_output: bool = False
    stream: str | None = None


@dataclass(frozen=True)
class AWQMapping:
    """One foldable pair for AWQ: the output channels of `source` can be divided by what the inputs of `targets` are multiplied with.

    `source` is a LayerNorm or a Linear; all `targets` read exactly its (linearly passed-on) output.
    """

    source: str
    targets: tuple[str, ...]


def attention_layers(prefix: str, part: Part, output: str, stream: str, *, shift_invariant_keys: bool) -> list[Layer]:
    """The four projections of an attention block; `output`: what the family calls the last, whose outputs are added to the input
    of the module `stream`."""
    own: Positions = "frames" if part == "encoder" else "tokens"
    keys: Positions = "frames" if part == "decoder cross" else own
    return [
        Layer(f"{prefix}.q_proj", part, own),
        Layer(f"{prefix}.k_proj", part, keys, shift_invariant=shift_invariant_keys),
        Layer(f"{prefix}.v_proj", part, keys),
        Layer(f"{prefix}.{output}", part, own, stream=stream),
    ]


def mlp_layers(prefix: str, part: Part, stream: str) -> list[Layer]:
    """The two linears of a feed-forward block, whose outputs are added to the input of the module `stream`."""
    positions: Positions = "frames" if part == "encoder" else "tokens"
    return [Layer(f"{prefix}.fc1", part, positions), Layer(f"{prefix}.fc2", part, positions, mlp_output=True, stream=stream)]
