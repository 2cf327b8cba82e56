"""The whole job on a bundled model and bundled speech: quantize with FADE and with plain rounding, compare the words."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sottovoce import api
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.core.affine import Affine
from sottovoce.data.load import load_data
from sottovoce.demo import make_speech
from sottovoce.demo.repeatable import deterministic, samples_digest
from sottovoce.errors import OutputError
from sottovoce.evaluation.teacher_forced import TeacherForcedEvaluator, TeacherForcedOutput, divergence_of_outputs
from sottovoce.evaluation.transcripts import TRANSCRIPTS as TRANSCRIPT_FILE
from sottovoce.evaluation.transcripts import Transcript, write_transcripts
from sottovoce.evaluation.wer import Score, score_transcripts
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.outputs import check_outputs
from sottovoce.system.progress import Progress

MODEL = "bundled:tiny.en"
FLOAT, ROUNDING, FADE = "float", "plain rounding", "FADE"
TRANSCRIPTS = {FLOAT: "float.jsonl", ROUNDING: "plain-rounding.jsonl", FADE: "fade.jsonl"}


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The quantized model, where it lies, and what was measured of the original, of plain rounding and of FADE, by these names.

    `scores`: FADE's is compared with plain rounding, utterance by utterance. `divergences`: mean over the original's tokens, in nats;
    0 for the original. `bytes`: of the weights. `transcripts`: the files. `digests`: of the speech as it was synthesized here, by set.
    """

    quantized: QuantizedModel
    folder: Path
    scores: Mapping[str, Score]
    divergences: Mapping[str, float]
    bytes: Mapping[str, int]
    transcripts: Mapping[str, Path]
    digests: Mapping[str, str]


def run_demo(out: Path, *, bits: int, progress: Progress) -> DemoResult:
    """Do everything under `out`; speech that is there already is used again, quantized folders are replaced.

    Two runs on one machine give the same figures if the number of threads is the same (see `repeatable`). Raises `OutputError` for files
    of others under these names.
    """
    files = {name: out / file for name, file in TRANSCRIPTS.items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{out}: the folder cannot be made ({exc.strerror}); give another --out") from exc
    check_outputs([(file, TRANSCRIPT_FILE) for file in files.values()])
    progress("speaking the sentences", 0, 2)
    speech = {"calibration": make_speech(out / "calibration", "calibration"), "test": make_speech(out / "test", "test")}
    progress("speaking the sentences", 2, 2)
    folders = {ROUNDING: out / f"tiny.en-{bits}bit-rtn", FADE: out / f"tiny.en-{bits}bit"}
    with deterministic():
        original = api.load(MODEL)
        rounded = api.quantize(original, folders[ROUNDING], recipe=_recipe("rtn", bits), overwrite=True)
        quantized = api.quantize(
            original, folders[FADE], recipe=_recipe("fade", bits), calibration=speech["calibration"], overwrite=True, progress=progress
        )
        models = {FLOAT: original, ROUNDING: rounded.model, FADE: quantized.model}
        outputs, divergences = _measure(models, speech["test"], progress)
    for name, file in files.items():
        write_transcripts(file, outputs[name])
    sizes = {name: (folder / WEIGHTS).stat().st_size for name, folder in folders.items()}
    return DemoResult(
        quantized=quantized,
        folder=folders[FADE],
        scores={name: score_transcripts(outputs[name], outputs[ROUNDING] if name == FADE else None) for name in models},
        divergences=divergences,
        bytes={FLOAT: sum(2 * parameter.numel() for parameter in original.network.parameters())} | sizes,
        transcripts=files,
        digests={name: samples_digest(load_data(file)) for name, file in speech.items()},
    )


@torch.no_grad()
def _measure(
    models: Mapping[str, SpeechModel], test: Path, progress: Progress
) -> tuple[dict[str, tuple[Transcript, ...]], dict[str, float]]:
    """Transcribe the test speech with every model, the original first, and compare their token distributions with the original's."""
    original = models[FLOAT]
    evaluator = TeacherForcedEvaluator(original, load_data(test))
    outputs, divergences = dict[str, TeacherForcedOutput](), dict[str, float]()
    for i, (name, model) in enumerate(models.items()):
        progress("transcribing", i, len(models))
        reference = outputs.get(FLOAT)
        outputs[name] = evaluator.evaluate(model, None, None if reference is None else reference.tokens)
        divergences[name] = float(divergence_of_outputs(original, outputs[FLOAT], model, outputs[name]).mean()) if reference else 0.0
    progress("transcribing", len(models), len(models))
    return {name: output.transcripts for name, output in outputs.items()}, divergences


def _recipe(method: str, bits: int) -> Recipe:
    return Recipe(method=METHODS[method], format=Affine(bits=bits))
