"""Tiny models and speech that the tests share. Nothing here needs a network or real weights."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from sottovoce.core.hessian import Hessian
from sottovoce.core.propagation import Moments
from sottovoce.models.whisper import Whisper

WIDTH = 64
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield


def tiny_tokenizer() -> WhisperTokenizer:
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["<|endoftext|>"] = len(vocabulary)
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    special = ["<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(t, special=True) for t in special]})
    return tokenizer


def make_tiny(seed: int = 0, width: int = WIDTH, layers: int = 2) -> Whisper:
    """A random Whisper with a byte vocabulary and 2 s of audio per pass."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    eos = token("<|endoftext|>")
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=16, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=2 * width, decoder_ffn_dim=2 * width,
        max_source_positions=100, max_target_positions=40, pad_token_id=eos, bos_token_id=eos, eos_token_id=eos,
        decoder_start_token_id=token("<|startoftranscript|>"), init_std=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    network = WhisperForConditionalGeneration(config).eval().requires_grad_(False)
    network.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id, eos_token_id=eos, pad_token_id=eos, bos_token_id=eos,
        max_length=24, no_timestamps_token_id=token("<|notimestamps|>"), is_multilingual=False, return_timestamps=False,
        suppress_tokens=[token("<|startofprev|>")], begin_suppress_tokens=[eos],
    )  # fmt: skip
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    model = Whisper(network, WhisperProcessor(extractor, tokenizer), "tiny")
    model.longest_s = 2.0
    return model


@pytest.fixture
def tiny() -> Whisper:
    return make_tiny()


@pytest.fixture(scope="session")
def speech_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds-long 'recordings' of filtered noise, with a manifest."""
    folder = tmp_path_factory.mktemp("speech")
    generator, rows = np.random.default_rng(0), []
    for i in range(12):
        samples = np.convolve(generator.standard_normal(12000 + 1500 * i), np.hanning(2 + 3 * i + 1), mode="same")
        soundfile.write(folder / f"u{i}.wav", 0.3 * samples / np.abs(samples).max(), 16000)
        rows.append({"id": f"u{i}", "audio": f"u{i}.wav", "speaker": f"s{i // 2}", "text": f"words of number {i}"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Whisper as a `transformers` folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = make_tiny()
    model.network.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return folder


def random_moments(
    width: int, seed: int, n: int = 200, noise: float = 0.3
) -> tuple[Moments, torch.Tensor, torch.Tensor]:
    """Moments of random correlated inputs in float64, with X and X^ `[in, n]`."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    quantized = mix @ torch.randn(width, n, generator=generator, dtype=torch.float64)
    original = quantized + noise * torch.randn(width, n, generator=generator, dtype=torch.float64)
    return Moments(Hessian(quantized @ quantized.T), (original - quantized) @ quantized.T), original, quantized


@pytest.fixture
def moments() -> Callable[..., tuple[Moments, torch.Tensor, torch.Tensor]]:
    return random_moments
