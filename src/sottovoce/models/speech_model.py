"""What every model family provides: features, prompts, greedy decoding, and which linear layers do what."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.errors import ModelError
from sottovoce.models.batching import Encoded, batches_by_language
from sottovoce.models.decoding import token_ids
from sottovoce.models.languages import DETECT, choose_language, default_language
from sottovoce.models.layers import AWQMapping, Layer, Positions
from sottovoce.system.devices import Placement, placed, placement_of

WORD_STARTS = ("\u0120", "\u2581")  # how byte-level BPE and SentencePiece write the space before a word


class SpeechModel(ABC):
    """Run an encoder-decoder speech recognizer: the interface that every family implements.

    `network`: the `transformers` model, in evaluation mode. `processor`: its tokenizer and feature extractor.
    `source`: the name it was loaded under; `folder`: where its files lie, None where that is not known. `head`, `encoder`, `embedding`:
    the names of the output head, the encoder and the token embedding in the network, which every family gives.
    """

    head: str
    encoder: str
    embedding: str
    max_duration_s: float = 30.0  # seconds of audio one forward pass takes
    fixed_length: bool = True  # features of all recordings have one length, whatever the recordings'

    detects_languages: bool = False  # whether the model can tell which language is spoken

    def __init__(self, network: Any, processor: Any, source: str) -> None:
        self.network: Any = network
        self.processor: Any = processor
        self.source = source
        self.folder: Path | None = None
        self.quantized_from: str | None = None  # the original of a model that was read from a quantized folder

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes of the languages that the model transcribes; none if its files do not say."""
        stated = getattr(self.network.config, "languages", None) or ()
        return tuple(str(code) for code in stated)

    def choose_language(self, asked: str | None) -> str | None:
        """Return the code of the language that a user asked for (see `languages.choose_language`). Raises `ModelError`."""
        return choose_language(asked, self.languages, detects=self.detects_languages, source=self.source)

    def spoken_language(self, asked: str | None) -> str:
        """Return the code of the language to transcribe: the one asked for, or the default. Raises `ModelError`, also for "auto"."""
        code = self.choose_language(asked)
        if code == DETECT:
            raise ModelError(f"{self.source}: the language is to be detected first; name it here")
        return code or default_language(self.languages, self.source)

    def complete_settings(self) -> None:
        """Add to the generation settings what is missing and known from elsewhere. Raises `ModelError` if start or end stay unknown."""
        settings, config, tokenizer = self.network.generation_config, self.network.config, self.processor.tokenizer
        for name in ("decoder_start_token_id", "eos_token_id"):
            if getattr(settings, name, None) is None:
                setattr(settings, name, getattr(config, name, None))
        if settings.eos_token_id is None:
            settings.eos_token_id = tokenizer.eos_token_id
        if settings.eos_token_id is None:
            raise ModelError(
                f"{self.source}: neither generation_config.json nor config.json nor the tokenizer says which token ends a transcript "
                "(eos_token_id); add it to generation_config.json"
            )

    def special_tokens(self) -> list[tuple[int, str | None]]:
        """List the ids that decoding relies on, each with the name that the tokenizer must have there (None: any special token)."""
        return [(end, None) for end in self.end_tokens]

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids that end a transcript: `eos_token_id` of the generation settings, which may be one id or a list of them."""
        ends = getattr(self.network.generation_config, "eos_token_id", None)
        return token_ids(getattr(self.network.config, "eos_token_id", None) if ends is None else ends)

    @property
    def vocabulary_size(self) -> int:
        """The number of rows of the token embedding."""
        return int(self.network.config.get_text_config(decoder=True).vocab_size)

    @property
    def first_untexted_id(self) -> int | None:
        """The id from which on rows need no token in the tokenizer (timestamps, padding), or None."""
        return None

    @abstractmethod
    def layers(self) -> list[Layer]:
        """List all quantizable linear layers, the head last."""

    @abstractmethod
    def awq_mappings(self) -> list[AWQMapping]:
        """List the pairs that AWQ can scale, in the order in which it may."""

    @abstractmethod
    def features(self, recordings: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return the encoder inputs of 16 kHz mono recordings (float32 `[n_samples]` each)."""

    @property
    def window_positions(self) -> int | None:
        """The encoder positions of a window of fixed length, of which it can take a part, or None: there is no such window."""
        return None

    def shortened(self, features: dict[str, Tensor], positions: int) -> dict[str, Tensor]:
        """Return encoder inputs that end after so many encoder positions. Raises `ModelError` where there is no window of fixed length."""
        del features, positions
        raise ModelError(f"{self.source}: a {self.network.config.model_type!r} model has no window of fixed length that could be shorter")

    def short_features(self, recordings: Sequence[np.ndarray], positions: int) -> dict[str, Tensor]:
        """Return the encoder inputs of recordings that are no longer than so many encoder positions, up to there."""
        return self.shortened(self.features(recordings), positions)

    @abstractmethod
    def encode(self, features: dict[str, Tensor]) -> Encoded:
        """Return the encoder outputs of a batch; an utterance's do not depend on what it is batched with."""

    @property
    def position_tables(self) -> tuple[str, ...]:
        """The names of the parameters that are tables of positions."""
        return ()

    @abstractmethod
    def decoder_states(self, encoded: Encoded, inputs: dict[str, Tensor]) -> Tensor:
        """Return the head's inputs, `[B, T, d]`, for encoder outputs and the decoder inputs of `teacher_forcing`."""

    def detect_languages(self, encoded: Encoded) -> list[str]:
        """Return the language code of each utterance. Raises `ModelError` where the family cannot tell."""
        del encoded
        raise ModelError(f"{self.source}: cannot tell languages apart; name the language")

    def decode_by_language(self, encoded: Encoded, language: str | None) -> tuple[list[tuple[list[int], bool]], list[str | None]]:
        """Decode as `greedy_decode` does; return the language of each utterance too, detected where `language` is "auto"."""
        language = self.choose_language(language)
        if language != DETECT:
            return self.greedy_decode(encoded, language), [language] * len(encoded.states)
        languages = self.detect_languages(encoded)
        decoded: dict[int, tuple[list[int], bool]] = {}
        for rows in batches_by_language(range(len(languages)), languages, len(languages)):
            decoded.update(zip(rows, self.greedy_decode(encoded[rows], languages[rows[0]]), strict=True))
        return [decoded[i] for i in range(len(languages))], list(languages)

    def greedy_decode(self, encoded: Encoded, language: str | None, max_new_tokens: int | None = None) -> list[tuple[list[int], bool]]:
        """Return greedy transcripts as token ids, without prompt and end token, and whether each came to its end token."""
        return self._generate(encoded, language, max_new_tokens, 0.0)

    def sample_decode(
        self, encoded: Encoded, language: str | None, temperature: float, *, seed: int, max_new_tokens: int | None = None
    ) -> list[tuple[list[int], bool]]:
        """Return transcripts sampled at `temperature` above 0, as `greedy_decode` does; the same `seed` gives the same tokens."""
        room = self.max_new_tokens(language)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            return self._generate(encoded, language, room if max_new_tokens is None else min(max_new_tokens, room), temperature)

    @abstractmethod
    def _generate(
        self, encoded: Encoded, language: str | None, max_new_tokens: int | None, temperature: float
    ) -> list[tuple[list[int], bool]]:
        """Decode greedily (temperature 0) or by sampling; `max_new_tokens`: of a transcript, as many as the model takes if None."""

    @abstractmethod
    def max_new_tokens(self, language: str | None) -> int:
        """Return how many tokens a transcript can have, prompt and end token not counted."""

    def step_limit(self, language: str | None, frames: int) -> int:
        """Return how many tokens, the end token included, are decoded at most for `frames` positions of the encoder's output."""
        del frames
        return self.max_new_tokens(language)

    def with_tokens_per_second(self, limit: float) -> "SpeechModel":
        """Return this model decoding at most `limit` tokens for a second of audio: a loop ends sooner, as truncated.

        Raises `ModelError` where the encoder's output does not tell how long the audio is.
        """
        raise ModelError(
            f"{self.source}: {self.network.config.model_type!r} models do not tell how long the audio is, so {limit:g} tokens a second "
            "is no limit for them; leave it out"
        )

    def decode(self, encoded: Encoded, language: str | None, max_new_tokens: int | None = None) -> list[list[int]]:
        """Return greedy transcripts as token ids, without prompt and end token."""
        return [tokens for tokens, _ in self.greedy_decode(encoded, language, max_new_tokens)]

    def decode_long(self, recording: np.ndarray, language: str | None) -> tuple[list[int], bool] | None:
        """Decode a recording of any length by the model's own long-form procedure, as `greedy_decode` does.

        Return None if the model has none: then recordings beyond `max_duration_s` are cut at silence.
        """
        del recording, language
        return None

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of a transcript."""
        return str(self.processor.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def split_words(self, tokens: Sequence[int], values: Sequence[float]) -> tuple[list[list[int]], list[list[float]]]:
        """Group a transcript's tokens, and a value of each, by word: a word begins where a token begins with a space."""
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
        """Return a transcript as token ids, without prompt and end token."""
        return list(self.processor.tokenizer(text.strip(), add_special_tokens=False).input_ids)

    @abstractmethod
    def teacher_forcing(self, transcripts: Sequence[Sequence[int]], language: str | None) -> tuple[dict[str, Tensor], Tensor]:
        """Return decoder inputs for known transcripts (prompt, transcript, padding), and a bool mask `[B, T]` of what is not padding."""

    def teacher_forced_inputs(
        self, recordings: Sequence[np.ndarray], transcripts: Sequence[Sequence[int]], language: str | None
    ) -> tuple[dict[str, Any], dict[Positions, Tensor]]:
        """Return what the network takes for recordings and known transcripts, and which positions of each kind count: bool `[B, T_p]`."""
        inputs, tokens = self.teacher_forcing(transcripts, language)
        whole = {**self.features(recordings), **inputs, "use_cache": False}
        return whole, {"frames": self._frame_mask(recordings), "tokens": tokens}

    def _frame_mask(self, recordings: Sequence[np.ndarray]) -> Tensor:
        """Return which encoder positions are audio rather than padding; bool `[B, T]`. For families that have layers of kind "frames"."""
        raise NotImplementedError

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape `[out, in]` of the weight of every layer, by name."""
        return {layer.name: tuple(self.module(layer.name).weight.shape) for layer in self.layers()}

    def prompt_length(self, language: str | None) -> int:
        """Return the number of prompt tokens in front of every transcript in `language`, the start token included."""
        inputs, _ = self.teacher_forcing([[]], language)
        return int(inputs["decoder_input_ids"].shape[1])

    @property
    def tied(self) -> bool:
        """Whether head and token embedding are one matrix."""
        return self.module(self.head).weight is self.module(self.embedding).weight

    def module(self, name: str) -> Any:
        """Return the submodule called `name`."""
        return self.network.get_submodule(name)

    def with_network(self, network: nn.Module) -> "SpeechModel":
        """Return the same processor and source around another network."""
        other = type(self)(network, self.processor, self.source)
        other.folder, other.quantized_from = self.folder, self.quantized_from
        return other

    def digest(self) -> str:
        """Return a hash of all weights by name."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.network.named_parameters()):
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.placement.device

    @property
    def placement(self) -> Placement:
        """Where and in which number type the network computes (see `system.devices.placed`)."""
        return placement_of(self.network)

    def placed(self, placement: Placement, *, keep_float32: bool = False) -> "SpeechModel":
        """Return this model computing by `placement` (see `system.devices.placed`). Raises `MachineError`."""
        return self if placement.is_plain else self.with_network(placed(self.network, placement, keep_float32=keep_float32))

    def on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors for the network: on its device, those of floating point in its number type."""
        placement = self.placement
        return {
            name: tensor.to(placement.device, placement.dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in inputs.items()
        }
