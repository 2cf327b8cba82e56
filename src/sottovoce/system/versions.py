"""Versions that can influence a result."""

import platform
from importlib.metadata import version


def environment() -> dict[str, str]:
    """Versions that can influence the result."""
    packages = ("sottovoce", "torch", "transformers", "compressed-tensors", "safetensors", "soxr", "soundfile")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
