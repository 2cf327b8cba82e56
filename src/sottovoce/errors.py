"""The error tree.

    SottovoceError                 anything this package refuses or fails at; the command exits with 1
    +-- ModelError                 a model that cannot be found, read or handled
    +-- AudioError                 a recording that cannot be used
    +-- DataError                  a data set, manifest or transcript that cannot be used
    +-- RecipeError                settings that are out of range or do not fit the model
    +-- CalibrationError           a calibration that cannot be carried out on this model or these data
    +-- CheckpointError            a quantized folder that is damaged, incomplete or of an unknown version
    +-- ExportError                a quantized folder that a runtime's format cannot hold, or a file that fails its check
    +-- OutputError                an output that cannot be written
    +-- MachineError               a device, a number type, a process or an amount of memory that is not there
    |   +-- AnotherRankError       another process of the same work has ended, and said why
    +-- MissingDependencyError     an optional package that is not installed

A message says what came, what was wanted and what to do.
"""

from collections.abc import Sequence

__all__ = [
    "AnotherRankError",
    "AudioError",
    "CalibrationError",
    "CheckpointError",
    "DataError",
    "ExportError",
    "MachineError",
    "MissingDependencyError",
    "ModelError",
    "OutputError",
    "RecipeError",
    "SottovoceError",
]


class SottovoceError(Exception):
    """Root of every error that this package raises on purpose."""


class ModelError(SottovoceError):
    """A model that cannot be found, read or handled."""


class AudioError(SottovoceError):
    """A recording that cannot be used."""


class DataError(SottovoceError):
    """A data set, manifest or transcript that cannot be used."""


class RecipeError(SottovoceError):
    """Settings that are out of range or do not fit the model."""


class CalibrationError(SottovoceError):
    """A calibration that cannot be carried out on this model or these data."""


class CheckpointError(SottovoceError):
    """A quantized folder that is damaged, incomplete or of an unknown version."""


class ExportError(SottovoceError):
    """A quantized folder that a runtime's format cannot hold, or a written file that fails its check."""


class OutputError(SottovoceError):
    """An output that cannot be written."""


class MachineError(SottovoceError):
    """A device, a number type, a process or an amount of memory that is not there."""


class AnotherRankError(MachineError):
    """One of several processes ends because another has ended, which says why; its own message is for whoever catches it."""


class MissingDependencyError(SottovoceError):
    """An optional package that is not installed."""


def first_of(names: Sequence[str]) -> str:
    """Name the first of `names`, and say how many more there are."""
    return f"{names[0]!r}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def first_line(exc: BaseException) -> str:
    """Return the first line of an error's message that holds anything, or the name of the error's class: it may have no message."""
    return next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
