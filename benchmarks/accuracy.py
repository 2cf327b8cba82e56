"""Word error rate and divergence of every method on the same grid: one JSON line per cell.

    python benchmarks/accuracy.py --speech DIR [--model bundled:tiny.en] [--bits 3 4] [--seeds 0 1 2] [--shard 0/2]

DIR holds `calibration`, `dev-librispeech`, `dev-accented` and `dev-home`, each with a `manifest.jsonl`. A cell that is in the
results already is not computed again, so the command can be stopped and started, and run in several shards at once.
The head stays in floating point; grid: groups of 128, asymmetric, searched scales; calibration: 128 utterances drawn by the
seed, labelled by the model itself. All methods count the same positions.
"""

import argparse
import hashlib
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sottovoce.core.grid import Grid
from sottovoce.data import DataSet, load_data
from sottovoce.evaluate.divergence import hidden_states, token_divergence
from sottovoce.evaluate.score import as_rows, score_transcripts
from sottovoce.evaluate.transcripts import Transcript
from sottovoce.models import SpeechModel, load_model
from sottovoce.quantize import prepare_speech, quantize_model
from sottovoce.recipe import METHODS, Method, Recipe

SETS = ("dev-librispeech", "dev-accented", "dev-home")
CALIBRATION_UTTERANCES = 128
TUNED = {"order": "activation", "absorb_bias": True}
ROWS: dict[str, Method] = {
    "rtn": METHODS["rtn"],
    "awq": METHODS["awq"],
    "gptq": METHODS["gptq"],
    "qep": METHODS["qep"],
    "fade-diagnostic": METHODS["fade-diagnostic"],
    "fade": METHODS["fade"],
    # The baselines with FADE's options (order of columns, bias absorption) and a regularisation of 0.3, about what FADE chooses.
    "gptq-tuned": replace(METHODS["gptq"], damping=0.3, **TUNED),
    "qep-tuned": replace(METHODS["qep"], damping=0.3, ridge=0.3, correct_residual_mlp=True, **TUNED),
}


def main() -> None:
    arguments = _arguments()
    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model)
    reference = [_Reference(model, load_data(Path(arguments.speech) / name)) for name in arguments.sets]
    index, count = map(int, arguments.shard.split("/"))
    cells = [
        (bits, method, seed)
        for seed in arguments.seeds
        for bits in arguments.bits
        for method in arguments.methods
        if seed == arguments.seeds[0] or method != "rtn"
    ]
    _write(
        arguments.out,
        "full-precision",
        {"model": arguments.model, "method": "none"},
        lambda: _evaluate(model, reference),
    )
    for bits, name, seed in cells[index::count]:
        recipe = Recipe(method=ROWS[name], grid=Grid(bits=bits), head_bits=16, frame_stride=arguments.stride)
        cell = {
            "model": arguments.model,
            "method": name,
            "bits": bits,
            "seed": None if name == "rtn" else seed,
            "recipe": asdict(recipe),
        }
        key = f"{name} {bits} bits seed {cell['seed']}"
        _write(
            arguments.out, key, cell, lambda recipe=recipe, seed=seed: _cell(model, reference, recipe, seed, arguments)
        )


def _cell(
    model: SpeechModel, reference: list["_Reference"], recipe: Recipe, seed: int, arguments: argparse.Namespace
) -> dict[str, object]:
    speech = None
    if recipe.method.streams:
        data = load_data(Path(arguments.speech) / "calibration").draw(CALIBRATION_UTTERANCES, seed)
        speech = _cached_speech(model, data, Path(arguments.cache))
    result = quantize_model(model, recipe, speech)
    strengths = [r.strength for r in result.reports]
    return {
        "solving_s": round(result.timing.solving_s, 1),
        "mean_strength": sum(strengths) / len(strengths),
        "layers": [asdict(report) for report in result.reports],
        **_evaluate(result.model, reference),
    }


def _cached_speech(model: SpeechModel, data: DataSet, cache: Path) -> object:
    """Calibration speech with its labels, made once per draw."""
    name = hashlib.sha256(json.dumps([model.source, [u.id for u in data]]).encode()).hexdigest()[:16]
    file = cache / f"{name}.pt"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(prepare_speech(model, data), file.with_suffix(".tmp"))
        file.with_suffix(".tmp").rename(file)
    return torch.load(file, weights_only=False)


class _Reference:
    """A set with the full-precision model's transcripts and decoder states."""

    def __init__(self, model: SpeechModel, data: DataSet) -> None:
        self.model, self.data = model, data
        self.batches = []
        for start in range(0, len(data), 32):
            utterances = data.utterances[start : start + 32]
            features = [
                model.features([u.samples() for u in utterances[i : i + 8]]) for i in range(0, len(utterances), 8)
            ]
            encoded = torch.cat([model.encode(piece) for piece in features])
            tokens = model.decode(encoded, None)
            self.batches.append((utterances, features, tokens, hidden_states(model, encoded, tokens, None)))
        self.transcripts = [
            _transcript(model, u, t) for us, _, ts, _ in self.batches for u, t in zip(us, ts, strict=True)
        ]


def _transcript(model: SpeechModel, utterance: object, tokens: list[int]) -> Transcript:
    return Transcript(
        id=utterance.id, text=model.text(tokens), tokens=tuple(tokens), duration_s=0.0, reference=utterance.text
    )


def _evaluate(model: SpeechModel, reference: list[_Reference]) -> dict[str, object]:
    results: dict[str, object] = {}
    for known in reference:
        transcripts, divergences = [], []
        for utterances, features, tokens, states in known.batches:
            encoded = torch.cat([model.encode(piece) for piece in features])
            heard = model.decode(encoded, None)
            transcripts += [_transcript(model, u, t) for u, t in zip(utterances, heard, strict=True)]
            other = hidden_states(model, encoded, tokens, None)
            divergences.append(token_divergence(known.model, states, model, other))
        score, divergence = score_transcripts(transcripts, known.transcripts), torch.cat(divergences)
        results[known.data.name] = {
            "mean_kl": float(divergence.mean()),
            "median_kl": float(divergence.median()),
            "tokens": len(divergence),
            **as_rows(score),
            "errors": {u.id: u.errors for u in score.utterances},
        }
    return {"sets": results}


def _write(out: str, key: str, cell: dict[str, object], compute: object) -> None:
    file = Path(out)
    done = {json.loads(line)["cell"] for line in file.read_text().splitlines()} if file.exists() else set()
    if key in done:
        return
    started = time.perf_counter()
    row = {"cell": key, **cell, **compute()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    figures = {
        name: (round(r["wer_percent"], 2), round(r["mean_kl"], 4), len(r["looped"])) for name, r in row["sets"].items()
    }
    print(f"{key}: {figures} ({time.perf_counter() - started:.0f} s)", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", required=True)
    parser.add_argument("--model", default="bundled:tiny.en")
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--stride", type=int, default=Recipe().frame_stride)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", default="benchmarks/results/accuracy.jsonl")
    parser.add_argument("--cache", default="build/labels")
    return parser.parse_args()


if __name__ == "__main__":
    main()
