"""Any other encoder-decoder recognizer of `transformers`, planned by the structure of its modules.

What a family of its own knows and this one cannot: which normalizations feed which linears (so there is no AWQ), how recordings
are padded (so they are taken one by one), a procedure for long recordings (so these are cut at silence).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.errors import ModelError
from sottovoce.models.batching import Encoded, padded_rows
from sottovoce.models.decoding import cut_at_end
from sottovoce.models.layers import AWQMapping, Layer, Part, Positions
from sottovoce.models.network import choice_of_tokens, generate
from sottovoce.models.speech_model import SpeechModel
from sottovoce.models.whisper_settings import language_tokens

CROSS = ("encoder_attn", "cross_attn", "crossattention")
ATTENTION = ("attn", "attention")
MAX_NEW_TOKENS = 200  # of a transcript, where the model's own settings do not say


class Generic(SpeechModel):
    """A model with `get_encoder`, `get_decoder` and an output head, and its processor."""

    fixed_length = False

    def __init__(self, network: Any, processor: Any, source: str) -> None:
        super().__init__(network, processor, source)
        head = network.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ModelError(f"{source}: {network.config.model_type!r} has no linear output head; it cannot be quantized")
        self._encoder, self._decoder = network.get_encoder(), network.get_decoder()
        # Both answer with the whole model where there is no such half.
        if self._encoder is self._decoder or any(half is None or half is network for half in (self._encoder, self._decoder)):
            raise ModelError(f"{source}: {network.config.model_type!r} has no encoder and decoder of its own")
        if getattr(processor, "feature_extractor", None) is None or getattr(processor, "tokenizer", None) is None:
            raise ModelError(f"{source}: its processor lacks a tokenizer or a feature extractor")
        self.head, self.encoder = self._name_of(head), self._name_of(self._encoder)
        self.embedding = self._name_of(self._decoder.get_input_embeddings())

    def _name_of(self, module: nn.Module) -> str:
        return next(str(name) for name, other in self.network.named_modules() if other is module)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that have a token, where the processor makes a prompt from one."""
        if not hasattr(self.processor, "get_decoder_prompt_ids"):
            return super().languages
        return tuple(token[2:-2] for token in language_tokens(self.processor.tokenizer.get_vocab()))

    def complete_settings(self) -> None:
        super().complete_settings()
        if self.network.generation_config.decoder_start_token_id is None and not hasattr(self.processor, "get_decoder_prompt_ids"):
            raise ModelError(
                f"{self.source}: neither generation_config.json nor config.json says which token begins a transcript "
                "(decoder_start_token_id); add it to generation_config.json"
            )

    def layers(self) -> list[Layer]:
        encoder, decoder = (self._name_of(half) + "." for half in (self._encoder, self._decoder))
        linears = [name for name, module in self.network.named_modules() if isinstance(module, nn.Linear)]
        found = [Layer(name, self._part(name, decoder), "all") for name in linears if name != self.head]
        found.sort(key=lambda layer: not layer.name.startswith(encoder))
        return [*found, Layer(self.head, "head", "all")]

    @staticmethod
    def _part(name: str, decoder: str) -> Part:
        if not name.startswith(decoder):
            return "encoder"
        if any(word in name for word in CROSS):
            return "decoder cross"
        return "decoder self" if any(word in name for word in ATTENTION) else "decoder mlp"

    def awq_mappings(self) -> list[AWQMapping]:
        raise ModelError(
            f"{self.source}: AWQ must know which normalization feeds which layer, and of {self.network.config.model_type!r} models "
            "that is not known here; choose another method"
        )

    def features(self, recordings: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return one entry for each recording, by its number: what the encoder takes for it alone, so that there is no padding."""
        return self.on_device({str(i): self._features_of(recording) for i, recording in enumerate(recordings)})

    def _features_of(self, recording: np.ndarray) -> Tensor:
        # With what the processor would ask of its feature extractor.
        settings = {**getattr(self.processor, "audio_kwargs", {}), "sampling_rate": SAMPLE_RATE, "return_tensors": "pt"}
        extracted = self.processor.feature_extractor(np.asarray(recording, dtype=np.float32), **settings)
        name = self.network.main_input_name
        if name not in extracted:
            raise ModelError(f"{self.source}: the network wants {name!r}, its feature extractor gives {', '.join(extracted)}")
        features: Tensor = extracted[name].float()
        return features

    def encode(self, features: dict[str, Tensor]) -> Encoded:
        parts = [Encoded(self._encoder(one).last_hidden_state) for one in features.values()]
        return Encoded.joined(parts)

    def decoder_states(self, encoded: Encoded, inputs: dict[str, Tensor]) -> Tensor:
        rows = [
            self._decoder(input_ids=inputs["decoder_input_ids"][i : i + 1], encoder_hidden_states=states, use_cache=False).last_hidden_state
            for i, states in enumerate(_one_by_one(encoded))
        ]
        return torch.cat(rows)

    def max_new_tokens(self, language: str | None) -> int:
        settings, config = self.network.generation_config, self.network.config
        limits = [getattr(config, name, None) for name in ("max_target_positions", "max_position_embeddings")]
        longest = min(settings.max_length or MAX_NEW_TOKENS, *(limit for limit in limits if limit), MAX_NEW_TOKENS)
        return int(longest) - len(self._prompt(language))

    def _generate(
        self, encoded: Encoded, language: str | None, max_new_tokens: int | None, temperature: float
    ) -> list[tuple[list[int], bool]]:
        prompt, room = self._prompt(language), self.max_new_tokens(language)
        limit = room if max_new_tokens is None else min(max_new_tokens, room)
        transcripts = []
        for states in _one_by_one(encoded):
            out = generate(
                self.network,
                encoder_outputs=self._outputs(states),
                decoder_input_ids=torch.tensor([prompt], device=self.device),
                **choice_of_tokens(temperature),
                max_new_tokens=limit,
            )
            transcripts.append(cut_at_end(out[0, len(prompt) :].tolist(), self.end_tokens))
        return transcripts

    def _outputs(self, states: Tensor) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        outputs = BaseModelOutput(last_hidden_state=states)
        outputs.attention_mask = None  # which some decoders ask for
        return outputs

    def teacher_forcing(self, transcripts: Sequence[Sequence[int]], language: str | None) -> tuple[dict[str, Tensor], Tensor]:
        prompt = self._prompt(language)
        rows = [[*prompt, *list(transcript)[: self.max_new_tokens(language)]] for transcript in transcripts]
        ids, mask = padded_rows(rows, self.network.generation_config.pad_token_id or 0)
        return self.on_device({"decoder_input_ids": ids}), mask

    def teacher_forced_inputs(
        self, recordings: Sequence[np.ndarray], transcripts: Sequence[Sequence[int]], language: str | None
    ) -> tuple[dict[str, Any], dict[Positions, Tensor]]:
        (recording,) = recordings
        features = self.on_device({self.network.main_input_name: self._features_of(recording)})
        inputs: dict[str, Any] = {**features, **self.teacher_forcing(transcripts, language)[0]}
        return inputs | {"use_cache": False}, {}

    def _prompt(self, language: str | None) -> list[int]:
        """Return what decoding starts from: the processor's prompt, where it makes one, or the start token."""
        if hasattr(self.processor, "get_decoder_prompt_ids"):
            return list(self.processor.get_decoder_prompt_ids(language=self.spoken_language(language)))
        start = self.network.generation_config.decoder_start_token_id
        return [self.network.config.decoder_start_token_id if start is None else start]


def _one_by_one(encoded: Encoded) -> list[Tensor]:
    """Return each utterance's encoder outputs, `[1, T, d]`, without padding, as copies: some decoders write into what they are given."""
    mask = encoded.mask
    lengths = [None] * len(encoded.states) if mask is None else mask.sum(1).tolist()
    return [encoded.states[i : i + 1, :length].clone() for i, length in enumerate(lengths)]
