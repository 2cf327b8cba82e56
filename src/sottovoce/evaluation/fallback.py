"""Decoding with temperature fallback, as in openai/whisper: a transcript that loops or is improbable is sampled again.

`transformers` has a fallback in Whisper's `generate`. It is not used here for recordings of one pass: it takes the compression ratio of
token ids instead of text, samples a whole batch from one random state (so that a transcript depends on its neighbors), and cannot decode
a part of a batch again from encoder outputs. It stays in use for long recordings, inside Whisper's own long-form procedure.
"""

from dataclasses import dataclass

from sottovoce.errors import RecipeError
from sottovoce.evaluation.failures import COMPRESSION_LIMIT, compression_ratio

FALLBACK = "fallback"  # the name of this decoding in transcripts and scores


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """When a transcript is decoded again, and how. The defaults are those of openai/whisper's `transcribe`.

    A recording is decoded at each of `temperatures` in turn, 0 is greedy, until a transcript passes: its text compresses at most
    `max_compression_ratio` times by zlib, and its tokens with the end token have at least `min_log_probability` on average (natural, of the
    plain softmax). If none passes, the last one stands. `seed`: of the sampling, for each recording anew.
    """

    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    max_compression_ratio: float = COMPRESSION_LIMIT
    min_log_probability: float = -1.0
    seed: int = 0

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.temperatures, self.temperatures[1:], strict=False))
        if not self.temperatures or self.temperatures[0] != 0 or not rising:
            raise RecipeError(f"temperatures of a fallback start at 0 and rise, got {list(self.temperatures)}")
        if not self.max_compression_ratio > 0:
            raise RecipeError(f"the compression ratio of a fallback must be above 0, got {self.max_compression_ratio}")

    def accepts(self, text: str, mean_log_probability: float) -> bool:
        """Tell whether a transcript passes both thresholds."""
        return compression_ratio(text) <= self.max_compression_ratio and mean_log_probability >= self.min_log_probability
