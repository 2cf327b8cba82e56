"""The size of the real file, before anything is quantized: the file is written once with codes that stand for zeros."""

import math
import re
import tempfile
from pathlib import Path

from sottovoce.backends.backend import Backend
from sottovoce.backends.export import export
from sottovoce.backends.layer_bytes import zero_weight
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.checkpoint.save import save_quantized
from sottovoce.errors import RecipeError
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.install import round_floats_to_float16
from sottovoce.quantization.pipeline import QuantizedModel, Timing
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.devices import share_weights

SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", re.IGNORECASE)
FACTORS = {None: 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_size(text: str | float) -> int:
    """Return bytes: a number, or text such as "30MB" (millions of bytes), "30MiB", "1.5G". Raises `RecipeError`."""
    if isinstance(text, int | float):
        size = float(text)
    else:
        found = SIZE.fullmatch(text)
        if found is None:
            raise RecipeError(f"{text!r} is not a size; give bytes, or a number with KB, MB, GB, KiB, MiB or GiB")
        unit = found.group(2)
        size = float(found.group(1)) * FACTORS[unit.lower() if unit else None]
    if not (math.isfinite(size) and size >= 1):
        raise RecipeError(f"a size of {text!r} is not possible; give at least one byte")
    return int(size)


def file_bytes(model: SpeechModel, plan: Plan, backend: Backend) -> int:
    """Return the bytes of the file (all files of a folder) that `plan` gives; of a quantized folder those of its weights."""
    network = share_weights(model.network)
    round_floats_to_float16(network, plan)
    empty = QuantizedModel(
        model=model.with_network(network),
        weights={layer.name: zero_weight(layer.format, *layer.shape) for layer in plan.layers},
        reports=(),
        plan=plan,
        recipe=Recipe(),
        calibration=None,
        timing=Timing(labels_s=0.0, solving_s=0.0),
    )
    with tempfile.TemporaryDirectory(prefix="sottovoce.") as folder:
        return written_bytes(empty, Path(folder) / "model", backend)


def written_bytes(result: QuantizedModel, path: Path, backend: Backend) -> int:
    """Write a result to `path` and return what `file_bytes` counts."""
    if backend.write is None:
        return (save_quantized(result, path) / WEIGHTS).stat().st_size
    return export(result, backend.name, path, verify=False).bytes
