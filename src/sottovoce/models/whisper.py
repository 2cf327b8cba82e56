"""Whisper and Distil-Whisper: 30 s log-mel frames in, text tokens after a prompt of special tokens out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.models.batching import Encoded, padded_rows
from sottovoce.models.decoding import cut_at_end
from sottovoce.models.languages import DEFAULT_LANGUAGE, DETECT
from sottovoce.models.layers import AWQMapping, Layer, Part, attention_layers, mlp_layers
from sottovoce.models.network import choice_of_tokens, generate
from sottovoce.models.speech_model import SpeechModel
from sottovoce.models.whisper_encoder import encode_window, masked_cross_attention
from sottovoce.models.whisper_settings import END, NO_TIMESTAMPS, START, complete_generation_config, languages_by_token

FIRST_TOKENS = 100  # generated for a whole batch before unfinished utterances go on alone
# Whisper's own thresholds for decoding a window again; the first in the measure that transformers takes of tokens.
LONG_FORM = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}
FRAMES_PER_POSITION = 2
SAMPLES_PER_POSITION = 320  # hop of 160 samples, halved in time by the second convolution


class Whisper(SpeechModel):
    """`WhisperForConditionalGeneration` with its processor."""

    head, encoder, embedding = "proj_out", "model.encoder", "model.decoder.embed_tokens"

    def __init__(self, network: Any, processor: Any, source: str) -> None:
        super().__init__(network, processor, source)
        self.max_duration_s = float(processor.feature_extractor.chunk_length)

    @property
    def languages(self) -> tuple[str, ...]:
        settings = self.network.generation_config
        return tuple(name[2:-2] for name in settings.lang_to_id) if settings.is_multilingual else (DEFAULT_LANGUAGE,)

    @property
    def detects_languages(self) -> bool:  # type: ignore[override]
        return bool(self.network.generation_config.is_multilingual)

    def complete_settings(self) -> None:
        complete_generation_config(self.network, self.processor.tokenizer, self.source)

    def special_tokens(self) -> list[tuple[int, str | None]]:
        settings, ends, end = self.network.generation_config, self.end_tokens, self.processor.tokenizer.get_vocab()[END]
        named = end if end in ends else ends[0]  # one of them has to be Whisper's own, whatever the others are
        wanted: list[tuple[int, str | None]] = [
            (settings.decoder_start_token_id, START),
            *((token, END if token == named else None) for token in ends),
            (settings.no_timestamps_token_id, NO_TIMESTAMPS),
        ]
        if settings.is_multilingual:
            wanted += [(index, name) for name, index in settings.lang_to_id.items()]
            wanted += [(index, f"<|{task}|>") for task, index in settings.task_to_id.items()]
        return wanted

    @property
    def first_untexted_id(self) -> int | None:
        last = self.processor.tokenizer.get_vocab().get(NO_TIMESTAMPS)
        return None if last is None else int(last) + 1

    def layers(self) -> list[Layer]:
        config, found = self.network.config, []
        for i in range(config.encoder_layers):
            at = f"model.encoder.layers.{i}"
            found += self._attention(at, "self_attn", "encoder")
            found += mlp_layers(at, "encoder", f"{at}.final_layer_norm")
        for i in range(config.decoder_layers):
            at = f"model.decoder.layers.{i}"
            found += self._attention(at, "self_attn", "decoder self")
            found += self._attention(at, "encoder_attn", "decoder cross")
            found += mlp_layers(at, "decoder mlp", f"{at}.final_layer_norm")
        return [*found, Layer(self.head, "head", "tokens")]

    @staticmethod
    def _attention(at: str, name: str, part: Part) -> list[Layer]:
        return attention_layers(f"{at}.{name}", part, "out_proj", f"{at}.{name}_layer_norm", shift_invariant_keys=True)

    def awq_mappings(self) -> list[AWQMapping]:
        config, mappings = self.network.config, []
        for half, count in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
            for i in range(count):
                at = f"model.{half}.layers.{i}"
                mappings.append(AWQMapping(f"{at}.self_attn_layer_norm", tuple(f"{at}.self_attn.{p}_proj" for p in "qkv")))
                mappings.append(AWQMapping(f"{at}.self_attn.v_proj", (f"{at}.self_attn.out_proj",)))
                if half == "decoder":
                    mappings.append(AWQMapping(f"{at}.encoder_attn_layer_norm", (f"{at}.encoder_attn.q_proj",)))
                    mappings.append(AWQMapping(f"{at}.encoder_attn.v_proj", (f"{at}.encoder_attn.out_proj",)))
                mappings.append(AWQMapping(f"{at}.final_layer_norm", (f"{at}.fc1",)))
        cross = tuple(f"model.decoder.layers.{i}.encoder_attn.{p}_proj" for i in range(config.decoder_layers) for p in "kv")
        return [*mappings, AWQMapping("model.encoder.layer_norm", cross)]

    def features(self, recordings: Sequence[np.ndarray]) -> dict[str, Tensor]:
        return self._features(recordings)

    def _features(self, recordings: Sequence[np.ndarray], **settings: Any) -> dict[str, Tensor]:
        extracted = self.processor.feature_extractor(list(recordings), sampling_rate=SAMPLE_RATE, return_tensors="pt", **settings)
        return self.on_device({"input_features": extracted["input_features"]})

    def short_features(self, recordings: Sequence[np.ndarray], positions: int) -> dict[str, Tensor]:
        # A position more than is kept, so that no frame that is kept sees the mirrored end of what is transformed: the numbers are those
        # of the whole window, in a part of the time.
        return self.shortened(self._features(recordings, max_length=(positions + 1) * SAMPLES_PER_POSITION), positions)

    def _frame_mask(self, recordings: Sequence[np.ndarray]) -> Tensor:
        positions = self.network.config.max_source_positions
        heard = torch.tensor([-(-len(samples) // SAMPLES_PER_POSITION) for samples in recordings])
        return torch.arange(positions) < heard.clamp(max=positions).unsqueeze(1)

    @property
    def window_positions(self) -> int | None:
        return int(self.network.config.max_source_positions)

    def shortened(self, features: dict[str, Tensor], positions: int) -> dict[str, Tensor]:
        return {"input_features": features["input_features"][..., : FRAMES_PER_POSITION * positions]}

    def encode(self, features: dict[str, Tensor]) -> Encoded:
        frames = features["input_features"]
        if frames.shape[-1] < FRAMES_PER_POSITION * self.network.config.max_source_positions:
            return Encoded(encode_window(self.network.model.encoder, frames))
        return Encoded(self.network.model.encoder(frames).last_hidden_state)

    @property
    def position_tables(self) -> tuple[str, ...]:
        return "model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"

    def decoder_states(self, encoded: Encoded, inputs: dict[str, Tensor]) -> Tensor:
        decoder = self.network.model.decoder
        with masked_cross_attention(decoder, encoded.mask):
            states: Tensor = decoder(
                input_ids=inputs["decoder_input_ids"], encoder_hidden_states=encoded.states, use_cache=False
            ).last_hidden_state
        return states

    def detect_languages(self, encoded: Encoded) -> list[str]:
        if not self.detects_languages:
            return [DEFAULT_LANGUAGE] * len(encoded.states)
        with masked_cross_attention(self.network.model.decoder, encoded.mask):
            found = self.network.detect_language(encoder_outputs=BaseModelOutput(last_hidden_state=encoded.states))
        codes = languages_by_token(self.network.generation_config)
        return [codes[token] for token in found.tolist()]

    def greedy_decode(self, encoded: Encoded, language: str | None, max_new_tokens: int | None = None) -> list[tuple[list[int], bool]]:
        room = self.max_new_tokens(language)
        limit = room if max_new_tokens is None else min(max_new_tokens, room)
        first = min(FIRST_TOKENS, limit)
        decoded = self._generate(encoded, language, first, 0.0)
        # Few utterances are longer than that, and looping ones run to the limit: only these go on, in a batch of their own.
        unfinished = [i for i, (_, ended) in enumerate(decoded) if not ended]
        if unfinished and first < limit:
            longer = self._generate(encoded[unfinished], language, limit, 0.0)
            for i, row in zip(unfinished, longer, strict=True):
                decoded[i] = row
        return decoded

    def max_new_tokens(self, language: str | None) -> int:
        longest = self.network.generation_config.max_length or self.network.config.max_target_positions
        return int(min(longest, self.network.config.max_target_positions) - len(self._prompt(language)))

    def decode_long(self, recording: np.ndarray, language: str | None) -> tuple[list[int], bool] | None:
        """Run Whisper's sequential algorithm (arXiv 2212.04356, section 3.8), as `transformers` has it.

        Windows of 30 s move on by the predicted timestamps; a window that loops or is improbable is decoded again at higher temperatures.
        """
        first_timestamp = self.network.generation_config.no_timestamps_token_id + 1
        if first_timestamp >= self.network.config.vocab_size:
            return None  # a model without timestamps
        extracted = self.processor.feature_extractor(
            recording,
            sampling_rate=SAMPLE_RATE,
            return_tensors="pt",
            truncation=False,
            padding="longest",
            return_attention_mask=True,
        )
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)  # for the higher temperatures: the same recording gives the same words
            out = generate(
                self.network,
                self.on_device({"": extracted["input_features"]})[""],
                attention_mask=extracted["attention_mask"].to(self.device),
                return_timestamps=True,
                condition_on_prev_tokens=False,
                num_beams=1,
                **LONG_FORM,
                **self._language_options(language),
            )
        skipped = {*self.processor.tokenizer.all_special_ids, *self.end_tokens}
        return [token for token in out[0].tolist() if token not in skipped and token < first_timestamp], True

    def _generate(
        self, encoded: Encoded, language: str | None, max_new_tokens: int | None, temperature: float
    ) -> list[tuple[list[int], bool]]:
        limit = self.max_new_tokens(language) if max_new_tokens is None else max_new_tokens
        with masked_cross_attention(self.network.model.decoder, encoded.mask):
            out = generate(
                self.network,
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded.states),
                **choice_of_tokens(temperature),
                return_timestamps=False,
                force_unique_generate_call=True,  # one window is one call: else tokens that look like timestamps move it on, or never
                max_new_tokens=limit,
                **self._language_options(language),
            )
        prompt = set(self._prompt(language))
        transcripts = []
        for row in out.tolist():
            while row and row[0] in prompt:
                row = row[1:]
            tokens, ended = cut_at_end(row, self.end_tokens)
            transcripts.append((tokens, ended or len(row) < limit))  # the longest row of a batch comes without its end token
        return transcripts

    def tokens(self, text: str) -> list[int]:
        return list(self.processor.tokenizer(f" {text.strip()}", add_special_tokens=False).input_ids)

    def teacher_forcing(self, transcripts: Sequence[Sequence[int]], language: str | None) -> tuple[dict[str, Tensor], Tensor]:
        prompt = self._prompt(language)
        room = self.network.config.max_target_positions - len(prompt)
        rows = [[*prompt, *list(transcript)[:room]] for transcript in transcripts]
        ids, mask = padded_rows(rows, self.network.config.pad_token_id)
        return {"decoder_input_ids": ids.to(self.device)}, mask

    def _prompt(self, language: str | None) -> list[int]:
        settings = self.network.generation_config
        prompt, code = [settings.decoder_start_token_id], self.spoken_language(language)
        if settings.is_multilingual:
            prompt += [settings.lang_to_id[f"<|{code}|>"], settings.task_to_id["transcribe"]]
        return [*prompt, settings.no_timestamps_token_id]

    def _language_options(self, language: str | None) -> dict[str, str]:
        code = self.choose_language(language)
        if not self.network.generation_config.is_multilingual:
            return {}
        named = {} if code == DETECT else {"language": self.spoken_language(code)}
        return {**named, "task": "transcribe"}
