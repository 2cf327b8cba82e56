"""What every model family provides: features, prompts, greedy decoding, and which linear layers do what."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from sottovoce.errors import ModelError

Part = Literal["encoder", "decoder self", "decoder cross", "decoder mlp", "head"]
Positions = Literal["frames", "tokens", "all"]
DETECT = "auto"  # the language that stands for: find out
WORD_STARTS = ("\u0120", "\u2581")  # how byte-level BPE and SentencePiece write the space before a word


@dataclass(frozen=True)
class Layer:
    """A linear layer that can be quantized.

    `positions`: whether its inputs are audio frames or text tokens, some of which may be padding, or such that all count.
    `shift_free`: a constant added to all its outputs
    changes nothing downstream (attention keys: the softmax cancels it), so the mean of its inputs need not be matched.
    `residual_mlp`: it is the second linear of a feed-forward block, which QEP's published settings leave uncorrected.
    `stream`: the module whose input is the residual stream that the outputs are added to, None: they go elsewhere, or it is not known.
    """

    name: str
    part: Part
    positions: Positions
    shift_free: bool = False
    residual_mlp: bool = False
    stream: str | None = None


@dataclass(frozen=True)
class AWQMapping:
    """One foldable pair for AWQ: the output channels of `source` can be divided by what the inputs of `targets` are multiplied with.

    `source` is a LayerNorm or a Linear; all `targets` read exactly its (linearly passed-on) output.
    """

    source: str
    targets: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of one forward pass with teacher forcing.

    `weights[p]` `[B, T_p]`: how much each position of kind p counts; for kind "all" there are none. `folds` `[B]`: the fold (0 or 1)
    of each utterance. `names`: what they are called in messages.
    """

    inputs: dict[str, Any]
    weights: dict[Positions, Tensor]
    folds: Tensor
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoder outputs: `states` `[B, T, d]`, and which of them hear audio, bool `mask` `[B, T]`, or None: all count."""

    states: Tensor
    mask: Tensor | None = None

    def __getitem__(self, rows: list[int]) -> "Encoded":
        return Encoded(self.states[rows], None if self.mask is None else self.mask[rows])

    @staticmethod
    def joined(parts: Sequence["Encoded"]) -> "Encoded":
        """One batch of several; shorter ones are padded and masked."""
        longest = max(part.states.shape[1] for part in parts)
        if all(part.mask is None and part.states.shape[1] == longest for part in parts):
            return Encoded(torch.cat([part.states for part in parts]))
        states, masks = [], []
        for part in parts:
            missing = longest - part.states.shape[1]
            mask = torch.ones(part.states.shape[:2], dtype=torch.bool) if part.mask is None else part.mask
            states.append(nn.functional.pad(part.states, (0, 0, 0, missing)))
            masks.append(nn.functional.pad(mask, (0, missing)))
        return Encoded(torch.cat(states), torch.cat(masks))


def attention_layers(prefix: str, part: Part, output: str, stream: str, *, shift_free_keys: bool) -> list[Layer]:
    """The four projections of an attention block; `output`: what the family calls the last, whose outputs are added to the input
    of the module `stream`."""
    own: Positions = "frames" if part == "encoder" else "tokens"
    keys: Positions = "frames" if part == "decoder cross" else own
    return [
        Layer(f"{prefix}.q_proj", part, own),
        Layer(f"{prefix}.k_proj", part, keys, shift_free=shift_free_keys),
        Layer(f"{prefix}.v_proj", part, keys),
        Layer(f"{prefix}.{output}", part, own, stream=stream),
    ]


def mlp_layers(prefix: str, part: Part, stream: str) -> list[Layer]:
    """The two linears of a feed-forward block, whose outputs are added to the input of the module `stream`."""
    positions: Positions = "frames" if part == "encoder" else "tokens"
    return [Layer(f"{prefix}.fc1", part, positions), Layer(f"{prefix}.fc2", part, positions, residual_mlp=True, stream=stream)]


def generate(network: Any, *inputs: Tensor, **settings: Any) -> Any:
    """`network.generate(*inputs, **settings)`, without its notices, batch by batch, that these go before the model's own settings."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(max(before, transformers_logging.ERROR))
    try:
        return network.generate(*inputs, **settings)
    finally:
        transformers_logging.set_verbosity(before)


def padded_rows(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Token ids `[B, T]`, padded on the right with `fill`, and a mask of what is not padding.

    Attention is causal, so real positions see no padding without any mask.
    """
    ids = torch.full((len(rows), max(map(len, rows))), fill)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return ids, mask


def batches_by_language(order: Sequence[int], languages: Sequence[str | None], size: int) -> Iterator[list[int]]:
    """Pieces of at most `size` of the numbers in `order`, none of which mixes languages."""
    for language in sorted(set(languages), key=str):
        group = [i for i in order if languages[i] == language]
        for start in range(0, len(group), size):
            yield group[start : start + size]


class SpeechModel(ABC):
    """An encoder-decoder speech recogniser with everything needed to run it.

    `network`: the `transformers` model, in evaluation mode. `processor`: its tokenizer and feature extractor.
    `source`: the name it was loaded under. `head`, `encoder`, `embedding`: the names of the output head, the encoder and the token
    embedding in the network, which every family gives.
    """

    head: str
    encoder: str
    embedding: str
    longest_s: float = 30.0  # seconds of audio one forward pass takes
    pads_to_one_length: bool = True  # features of all recordings have one length, whatever the recordings'
    floors: Mapping[str, int] = MappingProxyType({})  # bits that layers (by regular expression) keep unless asked otherwise

    def __init__(self, network: Any, processor: Any, source: str) -> None:
        self.network: Any = network
        self.processor: Any = processor
        self.source = source

    @abstractmethod
    def layers(self) -> list[Layer]:
        """All quantizable linear layers, the head last."""

    @abstractmethod
    def awq_mappings(self) -> list[AWQMapping]:
        """The foldable pairs, in the order in which they may be folded."""

    @abstractmethod
    def features(self, recordings: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Encoder inputs of 16 kHz mono recordings."""

    @abstractmethod
    def encode(self, features: dict[str, Tensor]) -> Encoded:
        """Encoder outputs of a batch; an utterance's do not depend on what it is batched with."""

    @abstractmethod
    def decoder_states(self, encoded: Encoded, inputs: dict[str, Tensor]) -> Tensor:
        """The head's inputs, `[B, T, d]`, for encoder outputs and the decoder inputs of `teacher_forcing`."""

    def detect_languages(self, encoded: Encoded) -> list[str]:
        """The language code of each utterance. Raises `ModelError` where the family cannot tell."""
        del encoded
        raise ModelError(f"{self.source}: cannot tell languages apart; name the language")

    def decode_by_language(self, encoded: Encoded, language: str | None) -> tuple[list[tuple[list[int], bool]], list[str | None]]:
        """As `decode_to_end`, and the language of each utterance: found out where `language` is "auto"."""
        if language != DETECT:
            return self.decode_to_end(encoded, language), [language] * len(encoded.states)
        languages = self.detect_languages(encoded)
        decoded: dict[int, tuple[list[int], bool]] = {}
        for rows in batches_by_language(range(len(languages)), languages, len(languages)):
            decoded.update(zip(rows, self.decode_to_end(encoded[rows], languages[rows[0]]), strict=True))
        return [decoded[i] for i in range(len(languages))], list(languages)

    @abstractmethod
    def decode_to_end(self, encoded: Encoded, language: str | None, max_new_tokens: int | None = None) -> list[tuple[list[int], bool]]:
        """Greedy transcripts as token ids, prompt and end token left off, and whether each came to its end token."""

    @abstractmethod
    def most_tokens(self, language: str | None) -> int:
        """How many tokens a transcript can have, prompt and end token not counted."""

    def decode(self, encoded: Encoded, language: str | None, max_new_tokens: int | None = None) -> list[list[int]]:
        """Greedy transcripts as token ids, prompt and end token left off."""
        return [tokens for tokens, _ in self.decode_to_end(encoded, language, max_new_tokens)]

    def decode_long(self, recording: np.ndarray, language: str | None) -> tuple[list[int], bool] | None:
        """A recording of any length by the model's own long-form procedure, as `decode_to_end`; None if it has none: then recordings
        beyond `longest_s` are cut at silence."""
        del recording, language
        return None

    def text(self, tokens: Sequence[int]) -> str:
        """The words of a transcript."""
        return str(self.processor.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def split_words(self, tokens: Sequence[int], values: Sequence[float]) -> tuple[list[list[int]], list[list[float]]]:
        """A transcript's tokens, and a value of each, word by word: a word begins where a token begins with a space."""
        words, of_words = list[list[int]](), list[list[float]]()
        for token, value in zip(tokens, values, strict=True):
            piece = self.processor.tokenizer.convert_ids_to_tokens(token) or ""
            if not words or piece.startswith(WORD_STARTS):
                words.append([])
                of_words.append([])
            words[-1].append(token)
            of_words[-1].append(value)
        return words, of_words

    def tokens(self, text: str) -> list[int]:
        """A transcript as token ids, without prompt and end token."""
        return list(self.processor.tokenizer(text.strip(), add_special_tokens=False).input_ids)

    @abstractmethod
    def teacher_forcing(self, transcripts: Sequence[Sequence[int]], language: str | None) -> tuple[dict[str, Tensor], Tensor]:
        """Decoder inputs for known transcripts: prompt, transcript, and padding; and a mask `[B, T]` of what is not padding."""

    def forced_inputs(
        self, recordings: Sequence[np.ndarray], transcripts: Sequence[Sequence[int]], language: str | None
    ) -> tuple[dict[str, Any], dict[Positions, Tensor]]:
        """What the whole network takes for recordings and known transcripts, and which positions of each kind count: bool `[B, T_p]`."""
        inputs, tokens = self.teacher_forcing(transcripts, language)
        whole = {**self.features(recordings), **inputs, "use_cache": False}
        return whole, {"frames": self._frame_mask(recordings), "tokens": tokens}

    def _frame_mask(self, recordings: Sequence[np.ndarray]) -> Tensor:
        """Which encoder positions hear audio rather than padding; bool `[B, T]`. Of families that have layers of kind "frames"."""
        raise NotImplementedError

    @property
    def prompt_length(self) -> int:
        """Prompt tokens in front of every transcript, the start token included."""
        inputs, _ = self.teacher_forcing([[]], None)
        return int(inputs["decoder_input_ids"].shape[1])

    @property
    def tied(self) -> bool:
        """Whether head and token embedding are one matrix."""
        return self.module(self.head).weight is self.module(self.embedding).weight

    def module(self, name: str) -> Any:
        """The submodule of that name."""
        return self.network.get_submodule(name)

    def with_network(self, network: nn.Module) -> "SpeechModel":
        """The same processor and source around another network."""
        return type(self)(network, self.processor, self.source)

    def digest(self) -> str:
        """A hash of all weights by name."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.network.named_parameters()):
            digest.update(name.encode())
            digest.update(parameter.detach().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """Where the network's parameters lie."""
        return torch.device(next(self.network.parameters()).device)
