"""Read a quantized folder."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sottovoce.checkpoint.layout import WEIGHTS, unpacked_tensor
from sottovoce.checkpoint.manifest import MANIFEST, read_manifest
from sottovoce.core.affine import BITS
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.errors import CheckpointError


def load_quantized(folder: Path | str) -> tuple[Any, Any]:
    """Network (float32, dequantized) and processor of a folder of ours, every file checked against its sha256.

    Raises `CheckpointError` for a changed, missing or unknown file, an unknown version, or tensors that do not fit.
    """
    from transformers import AutoConfig, AutoModelForSpeechSeq2Seq, AutoProcessor, GenerationConfig

    folder = Path(folder)
    manifest = read_manifest(folder)
    weights = read_weights(folder, manifest)
    state = {name: tensor.float() for name, tensor in _plain_tensors(folder).items()}
    state |= {f"{name}.weight": weight.dequantize() for name, weight in weights.items()}
    try:
        config = AutoConfig.from_pretrained(folder)
        del config.quantization_config
        config.dtype = "float32"
        with torch.device("meta"):  # so that a description of a giant takes no memory before it is compared with what is there
            described = AutoModelForSpeechSeq2Seq.from_config(config).state_dict()
        shapes = {name: tensor.shape for name, tensor in described.items()}
        if odd := [name for name, tensor in state.items() if shapes.get(name) != tensor.shape]:
            raise CheckpointError(f"{folder}: the tensor {odd[0]!r} is not one that config.json describes")
        network = AutoModelForSpeechSeq2Seq.from_config(config)
        missing, _ = network.load_state_dict(state, strict=False)
        if left := sorted(set(missing) - set(getattr(network, "all_tied_weights_keys", {}) or {})):
            raise CheckpointError(f"{folder}: missing tensors {left}")
        network.tie_weights()
        network.generation_config = GenerationConfig.from_pretrained(folder)
        return network.eval(), AutoProcessor.from_pretrained(folder)
    except CheckpointError:
        raise
    except Exception as exc:  # transformers raises many kinds for a description that makes no sense
        raise CheckpointError(f"{folder}: does not make up a recognizer ({type(exc).__name__}: {exc})") from exc


def read_weights(folder: Path, manifest: dict[str, Any]) -> dict[str, QuantizedTensor]:
    """The codes of every quantized layer, by the name under which its tensors are stored."""
    found = dict[str, QuantizedTensor]()
    with _open_weights(folder) as file:
        names = set(file.keys())
        for target, bits, symmetric in _described_layers(folder / "config.json"):
            if f"{target}.weight_packed" not in names:
                continue  # the head, where it is stored under the embedding's name
            tensors = {name: file.get_tensor(name) for name in names if name.startswith(f"{target}.weight_")}
            try:
                found[target] = unpacked_tensor(target, tensors, bits, symmetric)
            except (ValueError, RuntimeError, TypeError, OverflowError) as exc:
                raise CheckpointError(f"{folder / WEIGHTS}: the tensors of {target!r} do not fit together ({exc})") from exc
    if len(found) != len(manifest["layers"]):
        raise CheckpointError(f"{folder}: {len(found)} quantized layers in {WEIGHTS}, {len(manifest['layers'])} in {MANIFEST}")
    return found


def _described_layers(file: Path) -> list[tuple[str, int, bool]]:
    """Name, bits and symmetry of the layers that `config.json` describes. Raises `CheckpointError`."""
    try:
        groups = json.loads(file.read_text(encoding="utf-8"))["quantization_config"]["config_groups"].values()
        found = [
            (str(target), scheme["weights"]["num_bits"], scheme["weights"]["symmetric"])
            for scheme in groups
            for target in scheme["targets"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(f"{file}: does not describe quantized layers ({type(exc).__name__}: {exc})") from exc
    for name, bits, symmetric in found:
        if type(bits) is not int or bits not in BITS or type(symmetric) is not bool:
            raise CheckpointError(f"{file}: {name!r} has bits {bits!r} and symmetry {symmetric!r}")
    return found


def _plain_tensors(folder: Path) -> dict[str, Tensor]:
    packed = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
    with _open_weights(folder) as file:
        return {name: file.get_tensor(name) for name in file.keys() if not name.endswith(packed)}  # noqa: SIM118


def _open_weights(folder: Path) -> Any:
    try:
        return safe_open(folder / WEIGHTS, "pt")
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{folder / WEIGHTS}: cannot be read ({exc}); fetch the folder again") from exc
