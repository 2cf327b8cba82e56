"""Write a folder as mlx-whisper 0.4.3 reads it (`mlx_whisper/load_models.py`): OpenAI's names, feed-forward layers `mlp1` and `mlp2`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from sottovoce.backends.backend import StoredType
from sottovoce.backends.mlx.layout import CONFIG, NAME, WEIGHTS
from sottovoce.backends.mlx.matrices import quantization, refusal, stored_type, to_mlx
from sottovoce.backends.onnx_runtime import NAME as ONNX_RUNTIME
from sottovoce.backends.openai_names import openai_dimensions, openai_name
from sottovoce.backends.openai_vocabulary import ANY_MODEL, require_openai_like
from sottovoce.backends.source import Source, UnheldError
from sottovoce.errors import ExportError

LONGEST_PERIOD = 10000.0  # of the encoder's positions
MOST_FROM_SINUSOIDS = 2e-3  # files in half precision round positions, which are at most 1


def write_mlx(source: Source, folder: Path) -> dict[str, StoredType]:
    """Write the folder; return what each quantized tensor became, by its name in `transformers`.

    Raises `ExportError` for a model that is not built like OpenAI's Whisper, for codes that MLX does not hold, and for more than one
    format (one entry of `config.json` is for all quantized modules).
    """
    require_openai_like(source, NAME)
    config = source.config
    if config.activation_function != "gelu":
        raise ExportError(f"{NAME} computes GELU, and this model wants {config.activation_function!r}; export it to {ANY_MODEL}")
    for name, weight in source.weights.items():
        if (reason := refusal(weight.format)) is not None:
            raise UnheldError(f"{name}: {reason}; quantize with --target {NAME}")
    kinds = dict.fromkeys(weight.format for weight in source.weights.values())
    if len({json.dumps(quantization(kind)) for kind in kinds}) > 1:
        found = " and ".join(kind.title for kind in kinds)
        raise UnheldError(f"{NAME} holds one width and one group size for all layers; these have {found}; quantize with --target {NAME}")
    tensors = dict[str, np.ndarray]()
    for parameter, array in source.floats().items():
        module, name = parameter.removesuffix(".weight"), mlx_name(parameter)
        if module in source.weights:
            stem = name.removesuffix(".weight")
            tensors |= {f"{stem}.{part}": np.ascontiguousarray(found) for part, found in to_mlx(source.weights[module]).items()}
        elif parameter == "model.encoder.embed_positions.weight":
            _require_sinusoids(array)
        else:
            kernel = array.transpose(0, 2, 1) if array.ndim == 3 else array  # convolutions are [out, width, in] there
            tensors[name] = _halved(name, kernel)
    heads = getattr(source.model.network.generation_config, "alignment_heads", None)
    if heads:  # which heads follow the speech, for timestamps of words
        tensors["alignment_heads"] = np.asarray(heads, np.int64)
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "mlx", **source.origin}))
    content: dict[str, Any] = {
        "model_type": "whisper",
        **openai_dimensions(config),
    }
    if kinds:
        content["quantization"] = quantization(next(iter(kinds)))
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return {name: stored_type(weight.format) for name, weight in source.weights.items()}


def mlx_name(parameter: str) -> str:
    """Return the name of a parameter in the folder."""
    return openai_name(parameter).replace(".mlp.0.", ".mlp1.").replace(".mlp.2.", ".mlp2.")


def sinusoids(length: int, width: int) -> np.ndarray:
    """Return the positions that mlx-whisper computes for the encoder, float32 `[length, width]` (Vaswani et al. 2017, section 3.5)."""
    steps = np.arange(width // 2, dtype=np.float64) * -(np.log(LONGEST_PERIOD) / (width // 2 - 1))
    angles = np.arange(length)[:, None] * np.exp(steps)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _require_sinusoids(positions: np.ndarray) -> None:
    farthest = float(np.abs(positions - sinusoids(*positions.shape)).max())
    if farthest > MOST_FROM_SINUSOIDS:
        raise ExportError(
            f"{NAME} computes the encoder's positions, and those of this model differ from them by up to {farthest:.2g}; export it to "
            f"{ANY_MODEL}"
        )


def _halved(name: str, array: np.ndarray) -> np.ndarray:
    if np.abs(array).max() > np.finfo(np.float16).max:
        raise ExportError(f"{name}: a weight exceeds the largest float16 number, which is what {NAME} stores; export it to {ONNX_RUNTIME}")
    return np.ascontiguousarray(array.astype(np.float16))
