"""The decoding that is measured: greedy, in every runtime, with nothing but the model's lists of suppressed tokens.

A model's `generation_config.json` may ask for more (beams, penalties, sampling). PyTorch alone would follow it, so it does not either:
else the same codes would give other words there than in ONNX Runtime, transcribe.cpp and whisper.cpp.
"""

from collections.abc import Collection, Sequence
from typing import Any

from transformers import GenerationConfig

# What stays: ids of tokens, lists of suppressed ones, lengths, and what Whisper's own procedure needs.
KEPT = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "suppress_tokens", "begin_suppress_tokens", "max_length",
    "is_multilingual", "lang_to_id", "task_to_id", "no_timestamps_token_id", "prev_sot_token_id", "alignment_heads",
    "max_initial_timestamp_index", "return_timestamps",
)  # fmt: skip
# What is set aside: all settings that change which token comes next.
SET_ASIDE = (
    "num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "constraints", "force_words_ids",
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "penalty_alpha",
    "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "sequence_bias", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "min_length", "min_new_tokens",
    "guidance_scale", "renormalize_logits", "watermarking_config", "stop_strings", "dola_layers", "low_memory", "language", "task",
)  # fmt: skip
OTHER_NEUTRAL = {"task": ("transcribe",), "low_memory": (False,), "renormalize_logits": (False,)}


def measured_config(settings: GenerationConfig) -> GenerationConfig:
    """Return `settings` with neutral values for all that would not be the same in every runtime."""
    kept = {name: getattr(settings, name) for name in KEPT if getattr(settings, name, None) is not None}
    if len(ends := token_ids(kept.get("eos_token_id"))) == 1:
        kept["eos_token_id"] = ends[0]  # Whisper's long-form procedure compares it with the token of padding
    return GenerationConfig(**kept)


def token_ids(setting: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the ids of a setting that may be one id, a list of them, or not given."""
    if setting is None:
        return ()
    return (setting,) if isinstance(setting, int) else tuple(setting)


def cut_at_end(row: Sequence[int], ends: Collection[int]) -> tuple[list[int], bool]:
    """Return the tokens of `row` before the first of the end tokens `ends`, and whether there is one."""
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    return list(row[:stop]), stop is not None


def set_aside(settings: GenerationConfig) -> dict[str, Any]:
    """Return what `settings` ask of decoding and does not happen, by name."""
    neutral = GenerationConfig._get_default_generation_params()
    found = {}
    for name in SET_ASIDE:
        value = getattr(settings, name, None)
        if value not in (None, neutral.get(name), [], {}, *OTHER_NEUTRAL.get(name, ())):
            found[name] = value
    return found


def set_aside_sentence(source: str, settings: GenerationConfig) -> str | None:
    """Return one sentence that names what is set aside, or None: nothing is."""
    found = set_aside(settings)
    if not found:
        return None
    named = ", ".join(f"{name}={value!r}" for name, value in found.items())
    advice = "; name the language with --language" if "language" in found else ""
    return (
        f"{source}: generation_config.json asks for {named}; decoding is greedy in every runtime here, with the suppressed tokens "
        f"alone, so this is set aside{advice}"
    )
