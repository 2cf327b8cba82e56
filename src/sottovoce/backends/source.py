"""What an exporter reads: a recognizer and the codes of its quantized layers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.backends.backend import ORIGIN
from sottovoce.backends.onnx_runtime import NAME as ONNX_RUNTIME
from sottovoce.checkpoint.layout import WEIGHTS, stored_name
from sottovoce.checkpoint.load import open_folder
from sottovoce.checkpoint.save import weights_digest
from sottovoce.core.affine import AffineTensor
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.errors import ExportError
from sottovoce.evaluation.context import ShortContext
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.pipeline import QuantizedModel


class UnheldError(ExportError):
    """Codes that a runtime's file cannot hold: they were found for another target."""


@dataclass(frozen=True, eq=False)
class Source:
    """`model` computes with the dequantized weights; `weights` holds the codes by module name, a tied head's under the embedding.

    `short_context`: the encoder contexts that the model was tuned for, None if for none. `digest`: returns the sha256 of the
    weights of the quantized folder, which takes a copy of them in memory where they are not in a file; None for a model that is not
    quantized. `target`: what it was quantized for.
    """

    model: SpeechModel
    weights: dict[str, QuantizedTensor]
    short_context: ShortContext | None = None
    digest: Callable[[], str] | None = None
    target: str = ""

    @property
    def origin(self) -> dict[str, str]:
        """What a file says of where it comes from, by the key of its metadata."""
        return {} if self.digest is None else {ORIGIN: self.digest()}

    @property
    def config(self) -> Any:
        """The network's configuration."""
        return self.model.network.config

    @property
    def family(self) -> str:
        """The architecture, as `transformers` calls it."""
        return str(self.config.model_type)

    def end_token(self, runtime: str) -> int:
        """Return the id that ends a transcript. Raises `ExportError` if there are several: `runtime` ends at one."""
        end, *others = self.model.end_tokens
        if others:
            raise ExportError(
                f"{runtime} ends a transcript at one token, and this model at any of {', '.join(map(str, self.model.end_tokens))} "
                f"(eos_token_id in generation_config.json); export it to {ONNX_RUNTIME}, or keep its folder"
            )
        return end

    def floats(self) -> dict[str, np.ndarray]:
        """All parameters by name in float32, a tied head's once, under the embedding."""
        skipped = f"{self.model.head}.weight" if self.model.tied else ""
        state = self.model.network.state_dict()
        return {name: tensor.float().cpu().numpy() for name, tensor in state.items() if name != skipped}

    def tokenizer(self) -> dict[str, Any]:
        """The tokenizer, as `tokenizer.json` has it. Raises `ExportError` if it is not byte-pair encoding."""
        import json

        content: dict[str, Any] = json.loads(self.model.processor.tokenizer.backend_tokenizer.to_str())
        if content["model"].get("type") != "BPE":
            raise ExportError(f"the tokenizer is of type {content['model'].get('type')!r}; byte-pair encoding is wanted")
        return content

    @property
    def name(self) -> str:
        """A short name: the last part of what the model was quantized from."""
        return self.model.source.rstrip("/").split("/")[-1].split(":")[-1].lower() or "model"


def open_source(source: str | Path | QuantizedModel) -> Source:
    """Open a folder written by sottovoce, checked file by file, or a result in memory. Raises `CheckpointError`."""
    if isinstance(source, QuantizedModel):
        weights = {stored_name(layer): source.weights[layer.name] for layer in source.plan.layers}
        return Source(source.model, weights, digest=lambda: weights_digest(source), target=source.plan.target)
    opened = open_folder(source)
    manifest = opened.manifest
    return Source(
        opened.model,
        opened.weights,
        short_context=manifest.short_context,
        digest=lambda: manifest.files[WEIGHTS].sha256,
        target=manifest.plan.target,
    )


def affine_parts(name: str, weight: QuantizedTensor) -> AffineTensor:
    """Return the parts of a weight in an affine format. Raises `ExportError` if its format is another."""
    parts = AffineTensor.of(weight)
    if parts is None:
        raise UnheldError(f"{name}: is quantized in the format {weight.format.title!r}, and this file holds affine formats only")
    return parts
