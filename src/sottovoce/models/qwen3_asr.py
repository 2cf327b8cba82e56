"""Qwen3-ASR: an audio tower whose outputs stand in the prompt of a language model.

A row of the language model is `[head of the prompt] [audio] [rest of the prompt] [transcript]`. What comes before the transcript does not
depend on it, so head and audio count as the encoder's output here, and the rest of the prompt as the decoder's.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.errors import ModelError
from sottovoce.models.batching import Encoded, padded_rows
from sottovoce.models.decoding import cut_at_end
from sottovoce.models.languages import DEFAULT_LANGUAGE, DETECT, language_code
from sottovoce.models.layers import AWQMapping, Layer, Positions, attention_layers, mlp_layers
from sottovoce.models.network import choice_of_tokens, generate
from sottovoce.models.speech_model import SpeechModel

LANGUAGE_TOKENS = 12  # in which the model says the language, if the prompt does not
MAX_NEW_TOKENS = 256  # of a transcript, as the model's own examples have it
AUDIO = "model.audio_tower"
TOWER_BITS = 8  # of the audio tower: with less, long recordings were seen to loop
TEXT = "model.language_model"


class Qwen3ASR(SpeechModel):
    """`Qwen3ASRForConditionalGeneration` with its processor. The audio tower packs recordings, so they are encoded one by one."""

    head, encoder, embedding = "lm_head", AUDIO, f"{TEXT}.embed_tokens"
    fixed_length = False
    detects_languages = True

    def __init__(self, network: Any, processor: Any, source: str) -> None:
        super().__init__(network, processor, source)
        self._prompts = cache(self._prompt)

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(LANGUAGE_CODE_TO_NAME)

    def complete_settings(self) -> None:
        super().complete_settings()
        tokenizer, wanted = self.processor.tokenizer, self.network.config.audio_token_id
        if tokenizer.convert_tokens_to_ids(self.processor.audio_token) != wanted:
            raise ModelError(
                f"{self.source}: its tokenizer has {self.processor.audio_token!r} at another place than token {wanted}, so it is of "
                "another model; restore the model's tokenizer files"
            )

    def layers(self) -> list[Layer]:
        config, found = self.network.config, []
        for i in range(config.audio_config.encoder_layers):
            at = f"{AUDIO}.layers.{i}"
            before = f"{at}.self_attn_layer_norm"
            found += attention_layers(f"{at}.self_attn", "encoder", "out_proj", before, shift_invariant_keys=True)
            found += mlp_layers(at, "encoder", f"{at}.final_layer_norm")
        found = [replace(layer, min_bits=TOWER_BITS) for layer in found]
        found += [Layer(f"model.multi_modal_projector.linear_{i}", "encoder", "all") for i in (1, 2)]
        for i in range(config.text_config.num_hidden_layers):
            at = f"{TEXT}.layers.{i}"
            before = f"{at}.input_layernorm"
            found += attention_layers(f"{at}.self_attn", "decoder self", "o_proj", before, shift_invariant_keys=False)
            found += [Layer(f"{at}.mlp.{name}_proj", "decoder mlp", "all") for name in ("gate", "up")]
            before = f"{at}.post_attention_layernorm"
            found.append(Layer(f"{at}.mlp.down_proj", "decoder mlp", "all", mlp_output=True, residual=before))
        # Recordings go one by one, without padding: all positions count, but those of the prompt predict nothing.
        return [*(replace(layer, positions="all") for layer in found), Layer(self.head, "head", "tokens")]

    def awq_mappings(self) -> list[AWQMapping]:
        config, mappings = self.network.config, []
        for i in range(config.audio_config.encoder_layers):
            at = f"{AUDIO}.layers.{i}"
            mappings.append(AWQMapping(f"{at}.self_attn_layer_norm", tuple(f"{at}.self_attn.{p}_proj" for p in "qkv")))
            mappings.append(AWQMapping(f"{at}.self_attn.v_proj", (f"{at}.self_attn.out_proj",)))
            mappings.append(AWQMapping(f"{at}.final_layer_norm", (f"{at}.fc1",)))
        mappings.append(AWQMapping(f"{AUDIO}.ln_post", ("model.multi_modal_projector.linear_1",)))
        for i in range(config.text_config.num_hidden_layers):
            at = f"{TEXT}.layers.{i}"
            mappings.append(AWQMapping(f"{at}.input_layernorm", tuple(f"{at}.self_attn.{p}_proj" for p in "qkv")))
            if config.text_config.num_attention_heads == config.text_config.num_key_value_heads:
                mappings.append(AWQMapping(f"{at}.self_attn.v_proj", (f"{at}.self_attn.o_proj",)))
            mappings.append(AWQMapping(f"{at}.post_attention_layernorm", (f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj")))
            mappings.append(AWQMapping(f"{at}.mlp.up_proj", (f"{at}.mlp.down_proj",)))
        return mappings

    def features(self, recordings: Sequence[np.ndarray]) -> dict[str, Tensor]:
        # One by one: the spectrum at the end of a recording depends on what follows it.
        apart = [self._features_of(recording) for recording in recordings]
        longest = max(values.shape[1] for values, _ in apart)
        return self.on_device(
            {
                "input_features": torch.stack([nn.functional.pad(v, (0, longest - v.shape[1])) for v, _ in apart]),
                "input_features_mask": torch.stack([nn.functional.pad(mask, (0, longest - len(mask))) for _, mask in apart]),
            }
        )

    def _features_of(self, recording: np.ndarray) -> tuple[Tensor, Tensor]:
        extracted = self.processor.feature_extractor(
            np.asarray(recording, dtype=np.float32),
            sampling_rate=SAMPLE_RATE,
            padding=True,
            return_attention_mask=True,
            n_window=self._window,
        )
        return extracted["input_features"][0], extracted["attention_mask"][0]

    def encode(self, features: dict[str, Tensor]) -> Encoded:
        parts = []
        for values, mask in zip(features["input_features"], features["input_features_mask"], strict=True):
            one = {"input_features": values.unsqueeze(0), "input_features_mask": mask.unsqueeze(0)}
            parts.append(Encoded(self.network.model.get_audio_features(**one).pooler_output.unsqueeze(0)))
        return Encoded.joined(parts)

    def decoder_states(self, encoded: Encoded, inputs: dict[str, Tensor]) -> Tensor:
        embed = self.module(self.embedding)
        rest = embed(inputs["decoder_input_ids"])
        rows = [torch.cat([context, rest[i]]) for i, context in enumerate(self._contexts(encoded))]
        embedded = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # on the right, where causal attention does not see it
        states = self.network.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return torch.stack([states[i, len(row) - rest.shape[1] : len(row)] for i, row in enumerate(rows)])

    def _contexts(self, encoded: Encoded) -> list[Tensor]:
        """Return head of the prompt and audio, `[n, d]`, of each utterance."""
        head = self.module(self.embedding)(torch.tensor(self._prompts(DEFAULT_LANGUAGE)[0], device=self.device))
        lengths = [len(s) for s in encoded.states] if encoded.mask is None else encoded.mask.sum(1).tolist()
        return [torch.cat([head, states[:length]]) for states, length in zip(encoded.states, lengths, strict=True)]

    def max_new_tokens(self, language: str | None) -> int:
        del language
        return int(self.network.generation_config.max_new_tokens or MAX_NEW_TOKENS)

    def _generate(
        self, encoded: Encoded, language: str | None, max_new_tokens: int | None, temperature: float
    ) -> list[tuple[list[int], bool]]:
        limit = min(max_new_tokens or self.max_new_tokens(language), self.max_new_tokens(language))
        return self._continue(encoded, self._prompts(self.spoken_language(language))[1], limit, temperature)

    def detect_languages(self, encoded: Encoded) -> list[str]:
        """Let the model go on behind a prompt that names no language: it then says "language German" before the transcript."""
        found = []
        for tokens, _ in self._continue(encoded, self._prompts(DETECT)[1], LANGUAGE_TOKENS, 0.0):
            said = re.match(r"\s*language\s+(\w+)", self.processor.tokenizer.decode(tokens))
            code = language_code(said[1], self.languages) if said else ""
            found.append(code if code in self.languages else DEFAULT_LANGUAGE)  # "language None": no speech
        return found

    def _continue(self, encoded: Encoded, prompt: list[int], limit: int, temperature: float) -> list[tuple[list[int], bool]]:
        """Decode at most `limit` tokens behind audio and `prompt`; return tokens, and whether they came to an end token."""
        rest = self.module(self.embedding)(torch.tensor(prompt, device=self.device))
        rows = [torch.cat([context, rest]) for context in self._contexts(encoded)]
        longest = max(map(len, rows))
        embedded = torch.stack([nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self.device)
        out = generate(
            self.network,
            inputs_embeds=embedded,
            attention_mask=mask,
            **choice_of_tokens(temperature),
            max_new_tokens=limit,
            eos_token_id=list(self.end_tokens),
            pad_token_id=self.end_tokens[0],
        )
        return [cut_at_end(row, self.end_tokens) for row in out.tolist()]

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.processor.decode(list(tokens), return_format="transcription_only")).strip()

    def teacher_forcing(self, transcripts: Sequence[Sequence[int]], language: str | None) -> tuple[dict[str, Tensor], Tensor]:
        rest = self._prompts(self.spoken_language(language))[1]
        rows = [[*rest, *list(transcript)[: self.max_new_tokens(language)]] for transcript in transcripts]
        ids, mask = padded_rows(rows, self.end_tokens[0])
        return self.on_device({"decoder_input_ids": ids}), mask

    def teacher_forced_inputs(
        self, recordings: Sequence[np.ndarray], transcripts: Sequence[Sequence[int]], language: str | None
    ) -> tuple[dict[str, Any], dict[Positions, Tensor]]:
        (recording,), (transcript,) = recordings, transcripts
        features = self.features([recording])
        frames = features["input_features_mask"].sum(-1)
        head, rest = self._prompts(self.spoken_language(language))
        audio_tokens = int(self.processor._get_audio_token_length(frames, self._window)[0])
        before = [*head, *[self.network.config.audio_token_id] * audio_tokens, *rest]
        ids = torch.tensor([[*before, *list(transcript)[: self.max_new_tokens(language)]]])
        predicts = torch.arange(ids.shape[1]).unsqueeze(0) >= len(before) - 1
        return {**features, **self.on_device({"input_ids": ids}), "use_cache": False}, {"tokens": predicts}

    @property
    def _window(self) -> int:
        return int(self.network.config.audio_config.n_window)

    def _prompt(self, language: str) -> tuple[list[int], list[int]]:
        """Return the token ids before and after the audio, from the processor's own template, with the language forced unless "auto"."""
        forced = None if language == DETECT else language
        (text,) = self.processor.apply_transcription_request(np.zeros(SAMPLE_RATE, np.float32), language=forced, tokenize=False)
        before, mark, after = text.partition(self.processor.audio_token)
        if not mark:
            raise ModelError(f"{self.source}: its chat template has no place for audio ({self.processor.audio_token!r})")
        tokenizer = self.processor.tokenizer
        return tuple(list(tokenizer(part, add_special_tokens=False).input_ids) for part in (before, after))  # type: ignore[return-value]
