"""A quantized folder in `transformers`, by its own loader: without any code of this package that reads weights."""

from pathlib import Path

import torch

from sottovoce.backends.pytorch import NAME as PYTORCH
from sottovoce.errors import ExportError, first_line
from sottovoce.evaluation.recognizer import TorchRecognizer
from sottovoce.models.generic import Generic
from sottovoce.models.load import FAMILIES


def open_in_transformers(folder: str | Path) -> TorchRecognizer:
    """Load `folder` as any user of `transformers` does, in float32.

    Raises `ExportError` if the loader refuses the folder (it takes one format for all layers) or leaves a weight out.
    """
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ExportError(f"{folder}: no such folder; a folder written by `sottovoce quantize` is wanted")
    try:
        network, report = AutoModelForSpeechSeq2Seq.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(path)
    except Exception as exc:
        raise ExportError(f"{folder}: transformers cannot load it ({first_line(exc)}); run it with --runtime {PYTORCH}") from exc
    if missing := sorted(report["missing_keys"]):
        raise ExportError(f"{folder}: transformers finds no weight {missing[0]!r} in it; run it with --runtime {PYTORCH}")
    family = FAMILIES.get(network.config.model_type, Generic)
    model = family(network.eval().requires_grad_(False), processor, str(folder))
    model.folder = path
    return TorchRecognizer(model)
