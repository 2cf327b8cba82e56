"""Batches of utterances: teacher-forced inputs, encoder outputs, padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sottovoce.models.layers import Positions


@dataclass(frozen=True, eq=False)
class Batch:
    """Hold the inputs of one forward pass with teacher forcing.

    `weights[p]` `[B, T_p]`: how much each position of kind p counts; for kind "all" there are none. `folds` `[B]`: the fold (0 or 1)
    of each utterance. `names`: what messages call them. `number`: of the batch among all. `group`: of batches whose products are added
    up in one piece, wherever other groups are; `closes`: whether it is the last batch of its group.
    """

    inputs: dict[str, Any]
    weights: dict[Positions, Tensor]
    folds: Tensor
    names: tuple[str, ...] = ()
    number: int = 0
    group: int = 0
    closes: bool = True


@dataclass(frozen=True, eq=False)
class Encoded:
    """Hold encoder outputs: `states` `[B, T, d]`, and bool `mask` `[B, T]` of those that are no padding, or None: all count."""

    states: Tensor
    mask: Tensor | None = None

    def __getitem__(self, rows: list[int]) -> "Encoded":
        return Encoded(self.states[rows], None if self.mask is None else self.mask[rows])

    @staticmethod
    def joined(parts: Sequence["Encoded"]) -> "Encoded":
        """Join several batches into one; shorter ones are padded and masked."""
        longest = max(part.states.shape[1] for part in parts)
        if all(part.mask is None and part.states.shape[1] == longest for part in parts):
            return Encoded(torch.cat([part.states for part in parts]))
        states, masks = [], []
        for part in parts:
            missing = longest - part.states.shape[1]
            mask = torch.ones(part.states.shape[:2], dtype=torch.bool, device=part.states.device) if part.mask is None else part.mask
            states.append(nn.functional.pad(part.states, (0, 0, 0, missing)))
            masks.append(nn.functional.pad(mask, (0, missing)))
        return Encoded(torch.cat(states), torch.cat(masks))


def padded_rows(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Return token ids `[B, T]`, padded on the right with `fill`, and a bool mask `[B, T]` of what is not padding.

    Attention is causal, so real positions see no padding without any mask.
    """
    ids = torch.full((len(rows), max(map(len, rows))), fill)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return ids, mask


def batches_by_language(order: Sequence[int], languages: Sequence[str | None], size: int) -> Iterator[list[int]]:
    """Yield pieces of at most `size` of the numbers in `order`, none of which mixes languages."""
    for language in sorted(set(languages), key=str):
        group = [i for i in order if languages[i] == language]
        for start in range(0, len(group), size):
            yield group[start : start + size]
