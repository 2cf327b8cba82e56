"""Measure loops: what decoding with fallback does to them, and whether varied calibration speech removes them.

    python benchmarks/loops.py --speech DIR --work SCRATCH [--bits 3 4] [--seeds 0 1] [--utterances 64] [--cells N]

DIR holds the speech: the sets `calibration`, `calibration-wide` and `dev-accented`. A model is quantized with FADE on each mix of
calibration speech: `read` (LibriSpeech alone), `wide` (with the accented clips and short orders of `calibration-wide`, by hours), each
as it is and with `--augment`. Each is decoded greedily and with fallback on the same utterances. What is finished in SCRATCH is not
measured again, so that the command can be stopped and started; `--cells 1` measures one more quantized model and stops.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, script_parser, write_json

from sottovoce import api
from sottovoce.core.affine import Affine
from sottovoce.data.augment import Augmentation
from sottovoce.data.load import load_data
from sottovoce.evaluation.failures import FAILURES
from sottovoce.evaluation.fallback import Fallback
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import Score, score_transcripts
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.atomic_files import written_whole
from sottovoce.system.plain_data import from_plain, to_plain

TEST_SET = "dev-accented"
MIXES = {"read": ("calibration",), "wide": ("calibration", "calibration-wide")}
Cell = tuple[int, int, str, bool]  # bits, seed, mix, augmented


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="bundled:tiny.en")
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--utterances", type=int, default=64, help="of the calibration speech")
    parser.add_argument("--limit", type=int, help="only the first so many utterances of the test set")
    parser.add_argument("--cells", type=int, help="measure at most so many quantized models now")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "loops.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = api.load(arguments.model)
    _transcribed(model, "original", arguments)
    cells = [(b, s, m, a) for s in arguments.seeds for b in arguments.bits for m in MIXES for a in (False, True)]
    missing = [cell for cell in cells if not _file(_name(cell), "fallback", arguments).is_file()]
    for cell in missing[: arguments.cells]:
        _measure(model, cell, arguments)
        print("finished", _name(cell), flush=True)
    _write(cells, arguments)


def _name(cell: Cell) -> str:
    bits, seed, mix, augmented = cell
    return f"{bits}bit-{mix}{'-augmented' if augmented else ''}-{seed}"


def _file(name: str, decoding: str, arguments: argparse.Namespace) -> Path:
    return Path(arguments.work) / f"{name}.{decoding}.json"


def _measure(model: SpeechModel, cell: Cell, arguments: argparse.Namespace) -> None:
    bits, seed, mix, augmented = cell
    folder = arguments.work / _name(cell)
    quantized = api.quantize(
        model,
        folder,
        recipe=Recipe(format=Affine(bits=bits), joined=0.0),
        calibration=[arguments.speech / name for name in MIXES[mix]],
        augmentation=Augmentation() if augmented else None,
        utterances=arguments.utterances,
        seed=seed,
        overwrite=True,
    )
    _transcribed(quantized.model, _name(cell), arguments)
    shutil.rmtree(folder)


def _transcribed(model: SpeechModel, name: str, arguments: argparse.Namespace) -> None:
    data = load_data(arguments.speech / TEST_SET, at_most=arguments.limit)
    for decoding, fallback in (("greedy", None), ("fallback", Fallback())):
        file = _file(name, decoding, arguments)
        if not file.is_file():
            result = api.evaluate(model, data, fallback=fallback)
            transcripts = [to_plain(transcript) for transcript in result.transcription.transcripts]
            with written_whole(file) as handle:
                json.dump(transcripts, handle)


def _write(cells: list[Cell], arguments: argparse.Namespace) -> None:
    """Score everything that is finished."""

    def read(name: str, decoding: str) -> list[Transcript]:
        return [from_plain(Transcript, row) for row in json.loads(_file(name, decoding, arguments).read_text(encoding="utf-8"))]

    rows = [_row("original", "greedy", read("original", "greedy"), None)]
    rows.append(_row("original", "fallback", read("original", "fallback"), read("original", "greedy")))
    for cell in cells:
        if not _file(_name(cell), "fallback", arguments).is_file():
            continue
        greedy, plain = read(_name(cell), "greedy"), _name((cell[0], cell[1], "read", False))
        about = {"bits": cell[0], "seed": cell[1], "mix": cell[2], "augmented": cell[3]}
        base = None if plain == _name(cell) or not _file(plain, "greedy", arguments).is_file() else read(plain, "greedy")
        rows.append(about | _row(_name(cell), "greedy", greedy, base))
        rows.append(about | _row(_name(cell), "fallback", read(_name(cell), "fallback"), greedy))
    result = {
        "model": arguments.model,
        "method": "FADE, groups of 32, head included",
        "calibration_utterances": arguments.utterances,
        "test": TEST_SET,
        "threads": arguments.threads,
        "rows": rows,
        **machine(),
    }
    write_json(arguments.out, result)


def _row(name: str, decoding: str, transcripts: list[Transcript], against: list[Transcript] | None) -> dict[str, Any]:
    """Return one system's score. Fallback is compared with greedy decoding of the same model, a mix with `read` as it is."""
    score: Score = score_transcripts(transcripts, against)
    paired = score.paired
    return {
        "name": name,
        "decoding": decoding,
        "utterances": len(score.utterances),
        "words": score.words,
        "wer_percent": round(100 * score.wer, 2),
        "capped_wer_percent": round(100 * score.capped_wer, 2),
        "interval_percent": [round(100 * score.low, 2), round(100 * score.high, 2)],
        **{failure: list(getattr(score, failure)) for failure in FAILURES},
        "decoded_again": sum(transcript.temperature > 0 for transcript in transcripts),
        "difference_percent": None if paired is None else [round(100 * x, 2) for x in (paired.difference, paired.low, paired.high)],
        "better_worse": None if paired is None else [len(paired.better), len(paired.worse)],
    }


if __name__ == "__main__":
    main()
