"""Compare the peak of memory that `--max-memory` foresees with the measured one, on random Whisper models.

    python benchmarks/memory.py 256 8 4            # width, utterances, batch size
    python benchmarks/memory.py 256 8 4 --file     # activations go to a file

Prints one row of JSON; rows are kept in `benchmarks/results/memory.json`. The models have 1500 positions and one layer in each half, the
utterances 6 seconds of noise; one thread.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import script_parser
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from sottovoce.backends.registry import target_named
from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.calibration_set import CalibrationSpeech
from sottovoce.quantization.memory_plan import foresee, measure_window
from sottovoce.quantization.pipeline import quantize_model
from sottovoce.quantization.plan import make_plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.windows import make_windows
from sottovoce.system.memory import peak_memory_bytes, reset_peak_memory

MIB = 1 << 20


def random_whisper(width: int, *, layers: int = 1, heads: int = 4) -> Whisper:
    """Return a Whisper with random weights and a vocabulary of bytes."""
    torch.manual_seed(0)
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["<|endoftext|>"] = end = len(vocabulary)
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    special = ["<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(token, special=True) for token in special]})
    start, silent = (tokenizer.convert_tokens_to_ids(special[i]) for i in (0, 2))
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
        max_source_positions=1500, max_target_positions=64, pad_token_id=end, bos_token_id=end, eos_token_id=end,
        decoder_start_token_id=start, init_std=0.1,
    )  # fmt: skip
    network = WhisperForConditionalGeneration(config).eval().requires_grad_(False)
    network.generation_config = GenerationConfig(
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=end, bos_token_id=end, max_length=24, no_timestamps_token_id=silent,
        is_multilingual=False, return_timestamps=False,
    )  # fmt: skip
    return Whisper(network, WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer), "random")


def noise(count: int) -> CalibrationSpeech:
    """Return utterances of 6 seconds with transcripts of six tokens."""
    generator, names = np.random.default_rng(0), tuple(map(str, range(count)))
    return CalibrationSpeech(
        ids=names,
        recordings=tuple((0.1 * generator.standard_normal(6 * SAMPLE_RATE)).astype(np.float32) for _ in names),
        transcripts=((5, 6, 7, 9, 10, 30),) * count,
        languages=(None,) * count,
        speakers=names,
        cut=(),
        seconds=6.0 * count,
        label_time_s=0.0,
    )


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("width", type=int)
    parser.add_argument("utterances", type=int)
    parser.add_argument("batch_size", type=int)
    parser.add_argument("--file", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model, speech, recipe = random_whisper(arguments.width), noise(arguments.utterances), Recipe(joined=0.0)
    plan = make_plan(model, recipe, target_named("torch"))
    foreseen = foresee(
        measure_window(model, plan, make_windows(model, speech, joined=0.0)),
        [layer.shape for layer in plan.layers],
        arguments.utterances,
        networks=recipe.method.n_networks,
        batch_size=arguments.batch_size,
        spill=arguments.file,
    ).peak_bytes
    reset_peak_memory()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        spill = Path(folder) if arguments.file else None
        quantize_model(model, plan, recipe, speech, batch_size=arguments.batch_size, spill=spill)
    row = vars(arguments) | {
        "foreseen_mib": round(foreseen / MIB),
        "measured_mib": round(peak_memory_bytes() / MIB),
        "seconds": round(time.perf_counter() - started),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
