"""Train the test model `bundled:moonshine-micro`: Moonshine's architecture and width, few layers, on synthetic commands.

    python benchmarks/moonshine_micro.py --work SCRATCH [--minutes 60] [--out src/sottovoce/models/moonshine_micro]

From nothing, on a CPU: speaks the sentences of `sottovoce.demo.commands` (once; a few minutes), trains a byte-pair tokenizer on
them, and teaches the model with noise, speed and pause augmentation. Stopped at any time, it goes on from its last checkpoint. When the
time is over, the float16 weights are written as a `transformers` folder, with the error rate on unseen sentences in its card.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, normalizers, trainers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from sottovoce import api
from sottovoce.demo.commands import command_sentences, make_commands, spoken
from sottovoce.demo.speech import Voice, add_noise
from sottovoce.models.moonshine import Moonshine
from sottovoce.system.atomic_files import sha256

RATE = 16_000
SPACE = "\u2581"
VOCABULARY = 640  # 3 special tokens, 256 bytes, letters, and what pairs of them grow to
TRAINING_SENTENCES, CALIBRATION_SENTENCES, TEST_SENTENCES = 12_000, 256, 200
PART = 1000  # sentences spoken at a time
BATCH = 24
PEAK_RATE, WARM_UP = 1.5e-3, 400  # learning rate; steps until it is reached
CTC_SHARE = 0.4  # of the loss: a head on the encoder that learns to align, thrown away afterwards
LABEL_SMOOTHING = 0.1
SPEEDS = (0.85, 1.2)  # of the voice
RESAMPLED = (0.93, 1.0, 1.07)  # of the recording, pitch included
SNR_DB = (-3.0, 25.0)
CLEAN, NEARLY_CLEAN_DB = 0.3, 50.0  # share of recordings with hardly any noise
NOISE_S = 300  # seconds of noise to take stretches of
LONGEST_PAUSE = 0.25  # seconds before and after the words
CHECKPOINT_EVERY = 300  # seconds


CARD = """# moonshine-micro

A Moonshine (arXiv 2410.15608) for spoken commands, made for testing: the true architecture and width of Moonshine tiny (288, 8 heads,
feed-forward 1152), two encoder layers, one decoder layer, {parameters} parameters, {megabytes:.1f} MB in float16. It knows the three
hundred words of `sottovoce.demo.commands` in one synthetic voice (hibari-tts), and nothing else; do not use it on people.

Word error rate on {sentences} sentences that it was never taught ({words} words; a quarter clean, the others with noise 10, 5 and 0 dB
below the speech): {wer:.2f} % (95 % interval {low:.2f} to {high:.2f}).

Made from nothing on a CPU by `python benchmarks/moonshine_micro.py --work SCRATCH --minutes {minutes:.0f}`. Weights and texts: Apache-2.0.
"""


def make_tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    """SentencePiece-like byte-pair encoding with byte fallback, as Moonshine's."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    # Word by word, so that no token spans two words.
    words = sorted({word for sentence in sentences for word in sentence.split()})
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator((word for _ in range(4) for word in words), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def make_network(vocabulary: int) -> MoonshineForConditionalGeneration:
    """Moonshine-tiny's width, heads and convolutions with two encoder layers and one decoder layer."""
    config = MoonshineConfig(
        vocab_size=vocabulary, encoder_num_hidden_layers=2, decoder_num_hidden_layers=1, max_position_embeddings=194,
        pad_head_dim_to_multiple_of=8, pad_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    network = MoonshineForConditionalGeneration(config)
    network.generation_config = GenerationConfig(decoder_start_token_id=1, bos_token_id=1, eos_token_id=2, pad_token_id=2, max_length=64)
    return network


def speak(sentences: list[str], file: Path) -> tuple[np.ndarray, np.ndarray]:
    """All sentences, int16, one after the other, and where each begins; made once."""
    starts_file = file.with_suffix(".starts.npy")
    if not starts_file.is_file():
        voice, speeds, pieces = Voice(), np.random.default_rng(1).uniform(*SPEEDS, len(sentences)), list[np.ndarray]()
        for first in range(0, len(sentences), PART):
            part = file.with_suffix(f".{first}.npz")  # stopped, it goes on from the last part
            if not part.is_file():
                said = [voice.say(spoken(sentences[i]), seed=i, speed=speeds[i]) for i in range(first, min(first + PART, len(sentences)))]
                whole = {str(i): (s / max(1.0, float(np.abs(s).max())) * 32767).astype(np.int16) for i, s in enumerate(said)}
                np.savez(part, **whole)
                print(f"spoken: {first + len(said)} of {len(sentences)}", flush=True)
            with np.load(part) as known:
                pieces += [known[str(i)] for i in range(len(known.files))]
        np.save(file, np.concatenate(pieces))
        np.save(starts_file, np.cumsum([0, *map(len, pieces)]))
        for part in file.parent.glob(f"{file.stem}.*.npz"):
            part.unlink()
    return np.load(file), np.load(starts_file)


def augmented(samples: np.ndarray, noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One recording with pauses, at another speed and level, in a stretch of `noise`."""
    speed = RESAMPLED[rng.integers(len(RESAMPLED))]
    if speed != 1.0:
        at = np.arange(0, len(samples) - 1, speed)
        samples = np.interp(at, np.arange(len(samples)), samples).astype(np.float32)
    before, after = (int(rng.uniform(0, LONGEST_PAUSE) * RATE) for _ in range(2))
    samples = np.pad(samples, (before, after))
    start = int(rng.integers(len(noise) - len(samples)))
    snr_db = float(rng.uniform(*SNR_DB)) if rng.random() > CLEAN else NEARLY_CLEAN_DB
    gain = np.sqrt(np.mean(samples**2) / np.mean(noise**2) / 10 ** (snr_db / 10))
    samples = samples + gain * noise[start : start + len(samples)]
    peak = float(np.abs(samples).max())
    return (samples * rng.uniform(0.2, 1.0) / peak).astype(np.float32)


def batches(audio: np.ndarray, starts: np.ndarray, tokens: list[list[int]], step: int) -> Iterator[tuple[Tensor, list[list[int]]]]:
    """Endless batches of recordings of about one length, padded with noise: Moonshine normalises over a whole recording, so there
    must be no padding that it is not meant to hear. The batches after `step` are the same whenever they are asked for."""
    lengths = np.diff(starts)
    # Pink noise, as in the test sentences: what is left of adding noise to nearly nothing.
    noise = add_noise(np.full(NOISE_S * RATE, 1e-6, dtype=np.float32), snr_db=-120.0, seed=3)
    while True:
        per_epoch = len(lengths) // BATCH
        epoch, first = divmod(step, per_epoch)
        rng = np.random.default_rng([7, epoch])
        order = np.argsort(lengths + rng.uniform(-4000, 4000, len(lengths)))[: per_epoch * BATCH]
        shuffled = rng.permutation(order.reshape(per_epoch, BATCH))
        for which in shuffled[first:]:
            rng = np.random.default_rng([11, step])
            heard = [augmented(audio[starts[i] : starts[i + 1]] / np.float32(32768), noise, rng) for i in which]
            longest = max(map(len, heard))
            values = np.stack([np.pad(h, (0, longest - len(h))) for h in heard]).astype(np.float32)
            values += 1e-5 * rng.standard_normal(values.shape).astype(np.float32)
            yield torch.from_numpy(values), [tokens[i] for i in which]
            step += 1


def loss_of(
    network: MoonshineForConditionalGeneration, aligner: nn.Linear, values: Tensor, texts: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """The decoder's cross-entropy on the next token, and the aligner's CTC loss."""
    longest = max(map(len, texts)) + 1
    ids = torch.full((len(texts), longest), 2)
    labels = torch.full((len(texts), longest), -100)
    for i, row in enumerate(texts):
        ids[i, 0] = 1
        ids[i, 1 : len(row) + 1] = torch.tensor(row)
        labels[i, : len(row) + 1] = torch.tensor([*row, 2])
    with torch.autocast("cpu", torch.bfloat16):
        states = network.model.encoder(values).last_hidden_state
        decoded = network.model.decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False).last_hidden_state
        logits, aligned = network.proj_out(decoded).float(), aligner(states).float()
    spelled = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=LABEL_SMOOTHING)
    targets = torch.tensor([token for row in texts for token in row])
    frames = torch.full((len(texts),), aligned.shape[1])
    ctc = nn.functional.ctc_loss(
        aligned.log_softmax(-1).transpose(0, 1), targets, frames, torch.tensor([len(row) for row in texts]),
        blank=0, zero_infinity=True,
    )  # fmt: skip
    return spelled, ctc


def train(
    network: MoonshineForConditionalGeneration,
    data: tuple[np.ndarray, np.ndarray, list[list[int]]],
    work: Path,
    minutes: float,
) -> None:
    """Until `minutes` of training are over, all sessions together; the learning rate falls with the time that is left."""
    aligner = nn.Linear(network.config.hidden_size, network.config.vocab_size)
    both = nn.ModuleDict({"network": network, "aligner": aligner})
    optimizer = torch.optim.AdamW(both.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    step, spent = restore(both, optimizer, work / "checkpoint.safetensors")
    if spent >= 60 * minutes:
        return
    network.train()
    saved = reported = time.perf_counter()
    recent: list[tuple[float, float]] = []
    for values, texts in batches(*data, step):
        began = time.perf_counter()
        share = min(1.0, spent / (60 * minutes))
        rate = PEAK_RATE * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.49 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        spelled, ctc = loss_of(network, aligner, values, texts)
        optimizer.zero_grad()
        ((1 - CTC_SHARE) * spelled + CTC_SHARE * ctc).backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        step, now = step + 1, time.perf_counter()
        spent += now - began
        recent.append((float(spelled), float(ctc)))
        over = spent >= 60 * minutes
        if now - reported > 30 or over:
            words, alignment = np.mean(recent, axis=0)
            where = f"step {step}, {spent / 60:.1f} of {minutes:.0f} min, rate {rate:.1e}"
            print(f"{where}: tokens {words:.3f}, ctc {alignment:.3f}", flush=True)
            recent, reported = [], now
        if now - saved > CHECKPOINT_EVERY or over:
            store(both, optimizer, step, spent, work / "checkpoint.safetensors")
            saved = now
        if over:
            return


def store(both: nn.Module, optimizer: torch.optim.Optimizer, step: int, spent: float, file: Path) -> None:
    """Weights, the optimizer's moments and how far training has come, whole or not at all."""
    tensors = {f"weight.{name}": parameter.detach() for name, parameter in both.named_parameters()}
    for name, parameter in both.named_parameters():
        if parameter in optimizer.state:
            tensors[f"first.{name}"] = optimizer.state[parameter]["exp_avg"]
            tensors[f"second.{name}"] = optimizer.state[parameter]["exp_avg_sq"]
    partial = file.with_suffix(".partial")
    save_file({name: t.contiguous() for name, t in tensors.items()}, partial, metadata={"step": str(step), "spent_s": repr(spent)})
    partial.replace(file)


def restore(both: nn.Module, optimizer: torch.optim.Optimizer, file: Path) -> tuple[int, float]:
    """Steps and seconds of the checkpoint in `file`, after putting everything back; zero if there is none."""
    if not file.is_file():
        return 0, 0.0
    with safe_open(file, "pt") as stored, torch.no_grad():
        step, spent = int(stored.metadata()["step"]), float(stored.metadata()["spent_s"])
        for name, parameter in both.named_parameters():
            parameter.copy_(stored.get_tensor(f"weight.{name}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": stored.get_tensor(f"first.{name}"),
                "exp_avg_sq": stored.get_tensor(f"second.{name}"),
            }
    print(f"going on from step {step}", flush=True)
    return step, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="speech and checkpoints; some 1 GB")
    parser.add_argument("--out", type=Path, help="folder of the finished model (default: WORK/moonshine-micro)")
    parser.add_argument("--minutes", type=float, default=60, help="of training, all sessions together")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--speech", action="store_true", help="only speak WORK/calibration and WORK/test, which the bench wants")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.speech:
        make_commands(args.work / "calibration", "calibration", CALIBRATION_SENTENCES)
        make_commands(args.work / "test", "test", TEST_SENTENCES)
        return
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sentences = command_sentences("train", TRAINING_SENTENCES)
    audio, starts = speak(sentences, args.work / "speech.npy")
    tokenizer = make_tokenizer(sentences)
    network = make_network(len(tokenizer))
    millions = network.num_parameters() / 1e6
    print(f"{len(audio) / RATE / 3600:.1f} h of speech, {millions:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    tokens = [list(tokenizer(sentence, add_special_tokens=False).input_ids) for sentence in sentences]
    train(network, (audio, starts, tokens), args.work, args.minutes)
    finish(network, tokenizer, args)


def finish(network: MoonshineForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """Measure on unseen sentences, write the folder."""
    out = args.out or args.work / "moonshine-micro"
    network = network.half().float().eval().requires_grad_(False)
    extractor = Wav2Vec2FeatureExtractor(feature_size=1, do_normalize=False, return_attention_mask=True)
    model = Moonshine(network, Wav2Vec2Processor(extractor, tokenizer), "moonshine-micro")
    test = make_commands(args.work / "test", "test", TEST_SENTENCES)
    score = api.evaluate(model, test).score
    network.half().save_pretrained(out)
    model.processor.save_pretrained(out)
    weights = out / "model.safetensors"
    (out / "model.sha256").write_text(f"{sha256(weights)}  {weights.name}\n")
    figures = {
        "minutes": args.minutes, "parameters": network.num_parameters(), "megabytes": weights.stat().st_size / 1e6,
        "sentences": TEST_SENTENCES, "words": score.words, "wer": 100 * score.wer, "low": 100 * score.low, "high": 100 * score.high,
    }  # fmt: skip
    (out / "README.md").write_text(CARD.format(**figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
