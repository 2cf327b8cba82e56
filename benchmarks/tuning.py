"""Tune a quantized model, and measure KL and words on the three dev sets before and after.

    python benchmarks/tuning.py --speech DIR --work SCRATCH --name 2bit-g128 --bits 2 --group-size 128 --head-bits 16

DIR holds the speech: `calibration`, `calibration-wide`, `dev-librispeech`, `dev-accented`, `dev-home`. The start is quantized on
`--calibration-utterances` of `calibration`; tuning trains on `calibration-wide`. Dev sets are only measured on. What SCRATCH has is not
made again, so one start serves many tunings. One file is written, `OUT/NAME.json`: the record of the tuning (looks, rates, KL of both
folds), and for every system and set the KL to the original in nats per token, errors and loops. `--runtime onnxruntime --contexts full +16`
measures the words of an exported file at encoder contexts.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, SETS, exported, machine, paired, script_parser, write_json

from sottovoce import api
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.checkpoint.manifest import MANIFEST, read_manifest
from sottovoce.cli.console import quiet_libraries
from sottovoce.core.affine import Affine
from sottovoce.core.formats import format_named
from sottovoce.data.audio import SAMPLE_RATE
from sottovoce.data.augment import Augmentation
from sottovoce.data.dataset import DataSet
from sottovoce.data.load import load_data
from sottovoce.evaluation.recognizer import Recognition, TorchRecognizer
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import score_transcripts
from sottovoce.fitting.speech import held_out_speech
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.tune_record import TuneSettings
from sottovoce.system.memory import peak_memory_bytes
from sottovoce.system.plain_data import to_plain
from sottovoce.system.progress import silent

LONG, LONG_WINDOW_S = "longform", 28.0


def main() -> None:
    arguments = parsed()
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    work, report = arguments.work, dict[str, Any]()
    work.mkdir(parents=True, exist_ok=True)
    start, tuned = work / arguments.start, work / arguments.name
    if not (start / MANIFEST).is_file():
        api.quantize(
            arguments.model,
            start,
            recipe=Recipe(
                method=METHODS[arguments.method],
                format=format_named(arguments.format) if arguments.format else Affine(bits=arguments.bits, group_size=arguments.group_size),
                head_bits=arguments.head_bits,
                joined=arguments.joined,
            ),
            target=arguments.target,
            calibration=arguments.speech / "calibration",
            utterances=arguments.calibration_utterances,
            resume=True,
        )
    if not (tuned / MANIFEST).is_file():
        began = time.perf_counter()
        api.tune(
            start,
            tuned,
            calibration=arguments.speech / "calibration-wide",
            settings=TuneSettings(
                steps=arguments.steps,
                rate=arguments.rate,
                float_rate=arguments.float_rate,
                context=arguments.context,
                full_share=arguments.full_share,
                look_every=arguments.look_every,
            ),
            augmentation=Augmentation() if arguments.augment else None,
            utterances=arguments.utterances,
            held_out=arguments.held_out,
            resume=True,
        )
        (work / f"{arguments.name}.cost.json").write_text(
            json.dumps({"tuning_s": round(time.perf_counter() - began), "peak_memory_bytes": peak_memory_bytes()})
        )
    cost = work / f"{arguments.name}.cost.json"
    manifest = read_manifest(tuned)
    report |= {
        "model": arguments.model,
        "start": {
            "recipe": to_plain(manifest.recipe),
            "target": manifest.plan.target,
            "calibration_utterances": arguments.calibration_utterances,
        },
        "bytes": (tuned / WEIGHTS).stat().st_size,
        "cost": json.loads(cost.read_text()) if cost.is_file() else None,
        "tuning": to_plain(manifest.tune),
        "sets": {},
        "threads": arguments.threads,
        **machine(),
    }
    report["tuning"].pop("speech")  # ids and hashes; the command gives the same
    report["tuning"].pop("held_out")
    out = arguments.out / f"{arguments.name}.json"
    write_json(out, report)
    for name in arguments.sets:
        report["sets"][name] = measured(arguments, {"start": start, "tuned": tuned}, name)
        write_json(out, report)
    if arguments.long_windows:
        report["long_windows"] = long_windows(arguments, {"start": start, "tuned": tuned})
        write_json(out, report)


def measured(arguments: argparse.Namespace, folders: dict[str, Path], name: str) -> dict[str, Any]:
    """Measure the KL of every system on a set, then the words of every system, the original's too, at every context."""
    data = load_data(arguments.speech / name, at_most=arguments.limit)
    found: dict[str, Any] = {"utterances": len(data), "kl": {}, "words": {}}
    original = api.load(arguments.model)
    if arguments.kl:
        speech = held_out_speech(original, data, language=None, progress=silent)
        found["tokens"] = speech.n_tokens
        found["kl"] = {system: speech.mean_divergence(api.load(folder)) for system, folder in folders.items()}
        del speech
        print(name, found["kl"], flush=True)
    systems: dict[str, Any] = {"original": original} | {
        system: exported(folder, arguments.runtime) for system, folder in folders.items() if system in arguments.systems
    }
    heard = dict[str, Sequence[Transcript]]()
    for system, model in systems.items():
        for context in arguments.contexts:
            if system not in arguments.systems or (system == "original" and context != "full"):
                continue
            name_here = f"{system}, {context}"
            heard[name_here] = api.evaluate(model, data, context=context).transcription.transcripts
            score = score_transcripts(heard[name_here])
            found["words"][name_here] = {
                "words": score.words,
                "wer_percent": 100 * score.wer,
                "capped_wer_percent": 100 * score.capped_wer,
                "errors": score.substitutions + score.insertions + score.deletions,
                "looped": list(score.looped),
                "against": {
                    other: paired(heard[name_here], heard[other])
                    for other in dict.fromkeys(("original, full", f"{system}, full"))
                    if other in heard and other != name_here
                },
            }
            print(name, system, context, f"{100 * score.wer:.2f} ({100 * score.capped_wer:.2f}), {len(score.looped)} loops", flush=True)
    return found


def long_windows(arguments: argparse.Namespace, folders: dict[str, Path]) -> dict[str, Any]:
    """Measure what becomes of windows full of speech: how many words differ from the original's, and which loop."""
    data = load_data(arguments.speech / LONG)
    original, found = window_texts(api.load(arguments.model), data), dict[str, Any]()
    for system, folder in folders.items():
        found[system] = windows_score(data, original, window_texts(api.load(folder), data))
        print("windows of", LONG_WINDOW_S, "s", system, found[system], flush=True)
    return found


def window_texts(model: SpeechModel, data: DataSet) -> list[Recognition]:
    """Transcribe the first `LONG_WINDOW_S` seconds of every recording, in one pass each."""
    windows = [utterance.samples()[: round(LONG_WINDOW_S * SAMPLE_RATE)] for utterance in data]
    return list(TorchRecognizer(model).recognize(windows, None).recognitions)


def windows_score(data: DataSet, original: Sequence[Recognition], heard: Sequence[Recognition]) -> dict[str, Any]:
    """Count the words that differ from the original's, capped, and name the recordings that loop."""
    score = score_transcripts(
        [
            Transcript(id=u.id, text=ours.text, tokens=ours.tokens, duration_s=LONG_WINDOW_S, reference=own.text, truncated=not ours.ended)
            for u, ours, own in zip(data, heard, original, strict=True)
        ]
    )
    return {"words": score.words, "capped_percent": 100 * score.capped_wer, "looped": list(score.looped)}


def parsed() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS / "tuning")
    parser.add_argument("--name", required=True, help="of the tuned folder and of the result")
    parser.add_argument("--start", default=None, help="name of the folder that is tuned (default: NAME-start)")
    parser.add_argument("--model", default="bundled:tiny.en")
    parser.add_argument("--target", default="compressed-tensors")
    parser.add_argument("--method", default="fade", choices=METHODS)
    parser.add_argument("--format", help="a named format, as `q4_0`, in place of --bits and --group-size")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--head-bits", type=int, default=None)
    parser.add_argument("--calibration-utterances", type=int, default=48)
    parser.add_argument("--joined", type=float, default=Recipe().joined, help="as in quantize, for the start")
    parser.add_argument("--context", choices=["full", "short"], default="full")
    parser.add_argument("--full-share", type=float, default=TuneSettings().full_share, help="of utterances, with --context short")
    parser.add_argument("--augment", action="store_true", help="vary the speech that is tuned on")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--float-rate", type=float)
    parser.add_argument("--look-every", type=int, help="steps (default: six looks)")
    parser.add_argument("--utterances", type=int, default=192)
    parser.add_argument("--held-out", type=int, default=48)
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--systems", nargs="+", default=["original", "start", "tuned"], help="whose words are measured")
    parser.add_argument("--contexts", nargs="+", default=["full"])
    parser.add_argument("--sets", nargs="*", default=SETS, help="to measure on; none: only the record of the tuning is written")
    parser.add_argument("--limit", type=int, default=None, help="utterances of each dev set (default: all)")
    parser.add_argument("--kl", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--long-windows", action="store_true", help=f"also the first {LONG_WINDOW_S:.0f} s of each recording of {LONG}")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.start = arguments.start or f"{arguments.name}-start"
    return arguments


if __name__ == "__main__":
    main()
