"""The whole job on a bundled model and bundled speech: quantize with FADE and with plain rounding, compare the words."""

from dataclasses import dataclass
from pathlib import Path

from sottovoce import api
from sottovoce.api import Evaluation
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.core.affine import Affine
from sottovoce.demo import make_speech
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.progress import Progress

MODEL = "bundled:tiny.en"


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The quantized model, where it lies, and the evaluations of the original, plain rounding and FADE, in that order."""

    quantized: QuantizedModel
    folder: Path
    evaluations: dict[str, Evaluation]
    bytes: dict[str, int]


def run_demo(out: Path, *, bits: int, progress: Progress) -> DemoResult:
    """Everything under `out`; speech that is there already is used again, quantized folders are replaced."""
    progress("speaking the sentences", 0, 2)
    calibration, test = make_speech(out / "calibration", "calibration"), make_speech(out / "test", "test")
    progress("speaking the sentences", 2, 2)
    original = api.load(MODEL)
    folders = {"plain rounding": out / f"tiny.en-{bits}bit-rtn", "FADE": out / f"tiny.en-{bits}bit"}
    api.quantize(original, folders["plain rounding"], recipe=_recipe("rtn", bits), overwrite=True)
    result = api.quantize(
        original,
        folders["FADE"],
        recipe=_recipe("fade", bits),
        calibration=calibration,
        overwrite=True,
        progress=progress,
    )
    float_bytes = sum(parameter.numel() * 2 for parameter in original.network.parameters())
    evaluations = {"float": api.evaluate(original, test, progress=progress)}
    for name, folder in folders.items():
        evaluations[name] = api.evaluate(folder, test, progress=progress)
    return DemoResult(
        quantized=result,
        folder=folders["FADE"],
        evaluations=evaluations,
        bytes={"float": float_bytes} | {name: (folder / WEIGHTS).stat().st_size for name, folder in folders.items()},
    )


def _recipe(method: str, bits: int) -> Recipe:
    return Recipe(method=METHODS[method], format=Affine(bits=bits))
