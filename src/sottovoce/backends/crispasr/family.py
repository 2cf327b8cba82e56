"""What the writer must know of a model family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sottovoce.backends.source import Source


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family as CrispASR reads it.

    `architecture`: as the file calls it. `require`: raises `ExportError` for a model that is built in a way CrispASR does not compute.
    `tensors`: names in the file, each with its parameter in `transformers`; one parameter may come twice. `settings`: writes the metadata.
    `inputs`: further float32 tensors. `beside`: further files of the folder.
    """

    architecture: str
    require: Callable[[Source], None]
    tensors: Callable[[Source], list[tuple[str, str]]]
    settings: Callable[[Source, Any], None]
    inputs: Callable[[Source], dict[str, np.ndarray]]
    beside: Callable[[Source], dict[str, bytes]]
