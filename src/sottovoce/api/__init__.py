"""The verbs of the package, a file for each group of them: `quantize`, `fit`, `export`, `evaluate`, `certify`, `push` and their like."""

from sottovoce.api.certification import Candidate, Choice, certify, choose_smallest
from sottovoce.api.fitting import FitResult, fit
from sottovoce.api.inputs import load
from sottovoce.api.inspection import inspect, inspect_errors
from sottovoce.api.opening import open_recognizer
from sottovoce.api.quantization import make_plan, quantize
from sottovoce.api.recognition import Evaluation, evaluate, fit_confidence, score, transcribe
from sottovoce.api.tuning import TuneResult, tune
from sottovoce.backends.export import export
from sottovoce.checkpoint.verify import verify
from sottovoce.evaluation.fallback import Fallback
from sottovoce.hub.push import push

__all__ = [
    "Candidate",
    "Choice",
    "Evaluation",
    "Fallback",
    "FitResult",
    "TuneResult",
    "certify",
    "choose_smallest",
    "evaluate",
    "export",
    "fit",
    "fit_confidence",
    "inspect",
    "inspect_errors",
    "load",
    "make_plan",
    "open_recognizer",
    "push",
    "quantize",
    "score",
    "transcribe",
    "tune",
    "verify",
]
