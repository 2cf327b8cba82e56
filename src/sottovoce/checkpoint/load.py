"""Read a quantized folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sottovoce.checkpoint.layout import WEIGHTS, stored_name
from sottovoce.checkpoint.manifest import Manifest, read_manifest
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.errors import CheckpointError, ModelError
from sottovoce.models.load import load_model, local_folder
from sottovoce.models.readiness import refuse_giant
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.plan import Plan


@dataclass(frozen=True, eq=False)
class OpenedFolder:
    """A quantized folder, every file checked against its sha256.

    `model` computes with the dequantized weights and goes by the name of what was quantized; `weights` holds the codes of every planned
    layer, by the name under which its tensors are stored.
    """

    manifest: Manifest
    model: SpeechModel
    weights: dict[str, QuantizedTensor]


def open_folder(folder: str | Path) -> OpenedFolder:
    """Open a folder written by sottovoce, here or on the Hub, with its files hashed and its codes unpacked once.

    Raises `CheckpointError`, `ModelError`.
    """
    folder = local_folder(folder)
    manifest = read_manifest(folder)
    weights = read_weights(folder, manifest.plan)
    model = load_model(folder, quantized_loader=lambda _: _network(folder, weights))
    model.source = model.quantized_from = manifest.source
    return OpenedFolder(manifest, model, weights)


def load(source: str | Path) -> SpeechModel:
    """Load a recognizer by Hub id, folder (transformers, faster-whisper, or quantized by us) or `bundled:NAME`."""
    origin: str | None = None

    def read(folder: Path) -> tuple[Any, Any]:
        nonlocal origin
        manifest = read_manifest(folder)
        origin = manifest.source
        return _network(folder, read_weights(folder, manifest.plan))

    model = load_model(source, quantized_loader=read)
    model.quantized_from = origin
    return model


def refuse_quantized(model: SpeechModel) -> SpeechModel:
    """Return `model`. Raises `ModelError` if it was read from a quantized folder: its weights are rounded already."""
    if model.quantized_from is not None:
        raise ModelError(f"{model.source}: was quantized already; give the original ({model.quantized_from})")
    return model


def load_quantized(folder: Path | str) -> tuple[Any, Any]:
    """Return network (float32, dequantized) and processor of a folder of ours, every file checked against its sha256.

    Raises `CheckpointError` for a changed, missing or unknown file, an unknown version, or tensors that do not fit.
    """
    folder = Path(folder)
    return _network(folder, read_weights(folder, read_manifest(folder).plan))


def _network(folder: Path, weights: Mapping[str, QuantizedTensor]) -> tuple[Any, Any]:
    """The network, float32, with dequantized `weights`, and the processor. Raises `CheckpointError` for tensors that do not fit."""
    from transformers import AutoConfig, AutoModelForSpeechSeq2Seq, AutoProcessor, GenerationConfig
    from transformers.initialization import no_init_weights

    state = {name: tensor.float() for name, tensor in _plain_tensors(folder, weights).items()}
    state |= {f"{name}.weight": weight.dequantize() for name, weight in weights.items()}
    try:
        config = AutoConfig.from_pretrained(folder)
        del config.quantization_config
        config.dtype = "float32"
        refuse_giant(str(folder), config)
        with torch.device("meta"):  # so that a description of a giant takes no memory before it is compared with what is there
            described = AutoModelForSpeechSeq2Seq.from_config(config).state_dict()
        shapes = {name: tensor.shape for name, tensor in described.items()}
        if odd := [name for name, tensor in state.items() if shapes.get(name) != tensor.shape]:
            raise CheckpointError(f"{folder}: the tensor {odd[0]!r} is not one that config.json describes")
        with no_init_weights():  # all of them are read
            network = AutoModelForSpeechSeq2Seq.from_config(config)
        missing, _ = network.load_state_dict(state, strict=False)
        if left := sorted(set(missing) - set(getattr(network, "all_tied_weights_keys", {}) or {})):
            raise CheckpointError(f"{folder}: missing tensors {left}")
        network.tie_weights()
        network.generation_config = GenerationConfig.from_pretrained(folder)
        return network.eval(), AutoProcessor.from_pretrained(folder)
    except (CheckpointError, ModelError):
        raise
    except Exception as exc:  # transformers raises many kinds for a description that makes no sense
        raise CheckpointError(f"{folder}: does not make up a recognizer ({type(exc).__name__}: {exc})") from exc


def read_weights(folder: Path, plan: Plan) -> dict[str, QuantizedTensor]:
    """Return the codes of every planned layer, by the name under which its tensors are stored. Raises `CheckpointError`."""
    found = dict[str, QuantizedTensor]()
    with _open_weights(folder) as file:
        names = set(file.keys())
        for layer in plan.layers:
            prefix = f"{stored_name(layer)}."
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(f"{prefix}weight_")}
            try:
                weight = QuantizedTensor.unpack(tensors, layer.format)
            except (ValueError, RuntimeError, TypeError, OverflowError, CheckpointError) as exc:
                raise CheckpointError(f"{folder / WEIGHTS}: the tensors of {stored_name(layer)!r} do not fit together ({exc})") from exc
            if weight.shape != layer.shape:
                raise CheckpointError(f"{folder / WEIGHTS}: {stored_name(layer)!r} is of shape {weight.shape}; its plan says {layer.shape}")
            found[stored_name(layer)] = weight
    return found


def _plain_tensors(folder: Path, weights: Mapping[str, QuantizedTensor]) -> dict[str, Tensor]:
    """All tensors that are not of a quantized layer."""
    packed = tuple(f"{name}.weight_" for name in weights)
    with _open_weights(folder) as file:
        return {name: file.get_tensor(name) for name in file.keys() if not name.startswith(packed)}  # noqa: SIM118


def _open_weights(folder: Path) -> Any:
    try:
        return safe_open(folder / WEIGHTS, "pt")
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{folder / WEIGHTS}: cannot be read ({exc}); fetch the folder again") from exc
