"""The verb `open_recognizer`: what transcribes, in whichever runtime."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sottovoce.api.inputs import loaded
from sottovoce.backends.export import export
from sottovoce.backends.registry import DEFAULT_RUNTIME, backend_named, open_runtime, runtime_of
from sottovoce.checkpoint.manifest import read_short_context
from sottovoce.errors import RecipeError
from sottovoce.evaluation.fallback import Fallback
from sottovoce.evaluation.recognizer import LimitedRecognizer, Recognizer, TorchRecognizer, WindowedRecognizer
from sottovoce.models.load import local_folder
from sottovoce.models.speech_model import SpeechModel
from sottovoce.system.devices import Placement


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a recognizer is opened, as `open_recognizer` is asked for it."""

    runtime: str | None = None
    fallback: Fallback | None = None
    tokens_per_second: float | None = None
    placement: Placement = Placement()  # noqa: RUF009 - a frozen value

    def of(self, model: str | Path | SpeechModel) -> Recognizer:
        """Open a model so."""
        return open_recognizer(
            model, self.runtime, fallback=self.fallback, tokens_per_second=self.tokens_per_second, placement=self.placement
        )


def open_recognizer(
    model: str | Path | SpeechModel,
    runtime: str | None = None,
    *,
    fallback: Fallback | None = None,
    tokens_per_second: float | None = None,
    placement: Placement = Placement(),  # noqa: B008 - a frozen value
) -> Recognizer:
    """Return what transcribes: `model` in PyTorch, or in the backend `runtime`, with as many threads as torch is set to.

    An exported file or ONNX folder runs in the runtime it is made for; another model is exported to a temporary file first. `fallback`:
    decode again what does not pass its thresholds, in PyTorch only (else `RecipeError`). `tokens_per_second`: cut a transcript after so
    many tokens for a second of audio (Moonshine, in PyTorch and ONNX Runtime; else `ModelError` or `RecipeError`). `placement`: where
    PyTorch computes, and in which number type (see `find_placement`); the other runtimes compute on the CPU (else `RecipeError`).
    """
    recognizer = _open(model, runtime, fallback, placement)
    if tokens_per_second is not None:
        if not isinstance(recognizer, LimitedRecognizer):
            raise RecipeError(f"{recognizer.source}: its runtime itself decides when a transcript ends; leave out --tokens-per-second")
        recognizer.limit_tokens(tokens_per_second)
    return recognizer


def _open(model: str | Path | SpeechModel, runtime: str | None, fallback: Fallback | None, placement: Placement) -> Recognizer:
    made_for = None if isinstance(model, SpeechModel) else runtime_of(model)
    asked = None if runtime is None else backend_named(runtime)
    chosen = made_for or (asked.name if asked is not None else DEFAULT_RUNTIME)
    this, instead = (chosen, ", or --runtime") if made_for is None else (f"{model} is an export for {chosen}, which", "")
    if fallback is not None and chosen != DEFAULT_RUNTIME:
        raise RecipeError(f"{this} decodes without fallback: only {DEFAULT_RUNTIME} has it; leave out --fallback{instead}")
    if not placement.is_plain and chosen != DEFAULT_RUNTIME:
        raise RecipeError(f"{this} computes on the CPU, with the numbers of its file; leave out --device, --dtype and --offload{instead}")
    if made_for is not None:
        if asked is not None and asked.name != made_for:
            raise RecipeError(f"{model} is made for the runtime {made_for}, and {asked.name} was asked for; leave --runtime out")
        return open_runtime(made_for, str(model), torch.get_num_threads())
    if asked is None or asked.name == DEFAULT_RUNTIME:
        speech_model = loaded(model)
        recognizer = TorchRecognizer(speech_model.placed(placement), fallback=fallback)
        return recognizer if isinstance(model, SpeechModel) else _with_tuned_context(recognizer, speech_model.folder)
    if isinstance(model, SpeechModel):
        raise RecipeError(f"a loaded model does not run in {asked.name}; export it, and name the file")
    quantized = local_folder(model)
    if asked.write is None:
        return _with_tuned_context(asked.open(str(quantized), torch.get_num_threads()), quantized)
    folder = Path(tempfile.mkdtemp(prefix="sottovoce."))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    exported = export(model, asked.name, folder / asked.file_name.format("model"), verify=False)
    return _with_tuned_context(asked.open(str(exported.file), torch.get_num_threads()), quantized)


def _with_tuned_context(recognizer: Recognizer, folder: Path | None) -> Recognizer:
    """Tell a recognizer which shorter contexts its model was tuned for, as the manifest of its folder says."""
    tuned = None if folder is None else read_short_context(folder)
    if tuned is not None and isinstance(recognizer, WindowedRecognizer):
        recognizer.window = replace(recognizer.window, tuned=tuned)
    return recognizer
