"""Moonshine: raw audio of any length in, text tokens out (arXiv 2410.15608)."""

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.moonshine.modeling_moonshine import MoonshineEncoderModelOutput

from sottovoce.data.audio import SAMPLE_RATE, filled_up
from sottovoce.errors import ModelError
from sottovoce.models.batching import Encoded, padded_rows
from sottovoce.models.decoding import cut_at_end
from sottovoce.models.layers import AWQMapping, Layer, attention_layers, mlp_layers
from sottovoce.models.network import choice_of_tokens, generate
from sottovoce.models.speech_model import SpeechModel

SHORTEST = 1024  # samples; the three convolutions need 895 for a single frame
CONVOLUTIONS = ((127, 64), (7, 3), (3, 2))  # kernel and stride of each, without padding
FRAME_SAMPLES = math.prod(stride for _, stride in CONVOLUTIONS)  # from one encoder position to the next: 384, 24 ms


class Moonshine(SpeechModel):
    """`MoonshineForConditionalGeneration` with its processor.

    The first normalization runs over a whole recording, so recordings are encoded one by one: padded ones would come out
    differently. `tokens_per_second`: as `with_tokens_per_second` sets it; None: only the positions of the decoder bound a transcript.
    """

    tokens_per_second: float | None = None
    head, encoder, embedding = "proj_out", "model.encoder", "model.decoder.embed_tokens"
    fixed_length = False

    def layers(self) -> list[Layer]:
        # Rotated keys are not free of shifts: the rotation turns a constant into something that depends on the position.
        config, found = self.network.config, []
        for i in range(config.encoder_num_hidden_layers):
            at = f"model.encoder.layers.{i}"
            found += attention_layers(f"{at}.self_attn", "encoder", "o_proj", f"{at}.input_layernorm", shift_invariant_keys=False)
            found += mlp_layers(f"{at}.mlp", "encoder", f"{at}.post_attention_layernorm")
        for i in range(config.decoder_num_hidden_layers):
            at = f"model.decoder.layers.{i}"
            before = f"{at}.input_layernorm"
            found += attention_layers(f"{at}.self_attn", "decoder self", "o_proj", before, shift_invariant_keys=False)
            before = f"{at}.post_attention_layernorm"
            found += attention_layers(f"{at}.encoder_attn", "decoder cross", "o_proj", before, shift_invariant_keys=True)
            found += mlp_layers(f"{at}.mlp", "decoder mlp", f"{at}.final_layernorm")
        return [*found, Layer(self.head, "head", "tokens")]

    def awq_mappings(self) -> list[AWQMapping]:
        config, mappings = self.network.config, []
        halves = (
            ("encoder", config.encoder_num_hidden_layers, "post_attention_layernorm"),
            ("decoder", config.decoder_num_hidden_layers, "final_layernorm"),
        )
        for half, count, before_mlp in halves:
            grouped = getattr(config, f"{half}_num_attention_heads") != getattr(config, f"{half}_num_key_value_heads")
            for i in range(count):
                at = f"model.{half}.layers.{i}"
                mappings.append(AWQMapping(f"{at}.input_layernorm", tuple(f"{at}.self_attn.{p}_proj" for p in "qkv")))
                if not grouped:  # else one value channel feeds several inputs of the output projection
                    mappings.append(AWQMapping(f"{at}.self_attn.v_proj", (f"{at}.self_attn.o_proj",)))
                if half == "decoder":
                    mappings.append(AWQMapping(f"{at}.post_attention_layernorm", (f"{at}.encoder_attn.q_proj",)))
                    if not grouped:
                        mappings.append(AWQMapping(f"{at}.encoder_attn.v_proj", (f"{at}.encoder_attn.o_proj",)))
                mappings.append(AWQMapping(f"{at}.{before_mlp}", (f"{at}.mlp.fc1",)))
        cross = tuple(f"model.decoder.layers.{i}.encoder_attn.{p}_proj" for i in range(config.decoder_num_hidden_layers) for p in "kv")
        return [*mappings, AWQMapping("model.encoder.layer_norm", cross)]

    def features(self, recordings: Sequence[np.ndarray]) -> dict[str, Tensor]:
        padded = [filled_up(samples, SHORTEST) for samples in recordings]
        longest = max(map(len, padded))
        values = torch.zeros(len(padded), longest)
        mask = torch.zeros(len(padded), longest, dtype=torch.long)
        for i, samples in enumerate(padded):
            values[i, : len(samples)] = torch.from_numpy(samples)
            mask[i, : len(samples)] = 1
        return self.on_device({"input_values": values, "attention_mask": mask})

    def _frame_mask(self, recordings: Sequence[np.ndarray]) -> Tensor:
        lengths = [self._frames(max(len(samples), SHORTEST)) for samples in recordings]
        return torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)

    @staticmethod
    def _frames(samples: int) -> int:
        """Encoder positions of so many samples: three convolutions without padding."""
        for kernel, stride in CONVOLUTIONS:
            samples = (samples - kernel) // stride + 1
        return samples

    def encode(self, features: dict[str, Tensor]) -> Encoded:
        parts = []
        for values, mask in zip(features["input_values"], features["attention_mask"], strict=True):
            parts.append(Encoded(self.network.model.encoder(values[: int(mask.sum())].unsqueeze(0)).last_hidden_state))
        return Encoded.joined(parts)

    def decoder_states(self, encoded: Encoded, inputs: dict[str, Tensor]) -> Tensor:
        states: Tensor = self.network.model.decoder(
            input_ids=inputs["decoder_input_ids"],
            encoder_hidden_states=encoded.states,
            encoder_attention_mask=encoded.mask,
            use_cache=False,
        ).last_hidden_state
        return states

    def max_new_tokens(self, language: str | None) -> int:
        del language
        longest = self.network.generation_config.max_length or self.network.config.max_position_embeddings
        return int(min(longest, self.network.config.max_position_embeddings)) - 1

    def step_limit(self, language: str | None, frames: int) -> int:
        room = self.max_new_tokens(language)
        if self.tokens_per_second is None:
            return room
        return min(room, math.ceil(self.tokens_per_second * frames * FRAME_SAMPLES / SAMPLE_RATE))

    def with_tokens_per_second(self, limit: float) -> "Moonshine":
        if not (math.isfinite(limit) and limit > 0):
            raise ModelError(f"{limit} tokens a second is no limit; give a number above 0, or leave it out")
        limited = copy.copy(self)
        limited.tokens_per_second = limit
        return limited

    def with_network(self, network: nn.Module) -> "Moonshine":
        other = copy.copy(self)
        other.network = network
        return other

    def _generate(
        self, encoded: Encoded, language: str | None, max_new_tokens: int | None, temperature: float
    ) -> list[tuple[list[int], bool]]:
        frames = [encoded.states.shape[1]] * len(encoded.states) if encoded.mask is None else encoded.mask.sum(1).tolist()
        limits = [self.step_limit(language, length) for length in frames]
        if max_new_tokens is not None:
            limits = [min(limit, max_new_tokens) for limit in limits]
        out = generate(
            self.network,
            encoder_outputs=MoonshineEncoderModelOutput(last_hidden_state=encoded.states, attention_mask=encoded.mask),
            **choice_of_tokens(temperature),
            max_new_tokens=max(limits),
        )
        # At its own limit: the others of the batch may take longer.
        return [cut_at_end(row[:limit], self.end_tokens) for row, limit in zip(out[:, 1:].tolist(), limits, strict=True)]

    def teacher_forcing(self, transcripts: Sequence[Sequence[int]], language: str | None) -> tuple[dict[str, Tensor], Tensor]:
        del language
        start, room = self.network.config.decoder_start_token_id, self.network.config.max_position_embeddings - 1
        rows = [[start, *list(transcript)[:room]] for transcript in transcripts]
        ids, mask = padded_rows(rows, self.end_tokens[0])
        return self.on_device({"decoder_input_ids": ids}), mask
