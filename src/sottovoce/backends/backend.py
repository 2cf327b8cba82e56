"""What is known of a runtime: one record each, in the `__init__` of its folder.

Everything else that needs a runtime's name (command line, targets, exports, benchmarks, messages) reads it from these records. A new
backend is a folder with a writer and a runtime, a record, and a line in `backends.registry`. Records import nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, NamedTuple

from sottovoce.errors import MissingDependencyError

if TYPE_CHECKING:
    from pathlib import Path

    from sottovoce.backends.source import Source
    from sottovoce.core.number_format import NumberFormat
    from sottovoce.core.qtensor import QuantizedTensor
    from sottovoce.evaluation.recognizer import Recognizer
    from sottovoce.quantization.target import Target


ORIGIN = "sottovoce.weights_sha256"  # in a file's metadata: sha256 of the weights of the quantized folder that it was written from


GGUF = b"GGUF"  # what a file of that kind begins with


class StoredType(NamedTuple):
    """How a tensor lies in a file: the runtime's own name of the type, and the bits of one code."""

    name: str
    bits: int


def packed_bytes(weight: QuantizedTensor, _part: str) -> int:
    """Return the bytes of a weight as a quantized folder stores it."""
    return sum(tensor.numel() * tensor.element_size() for tensor in weight.pack().values())


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One runtime: what it holds, how its file is written, how it transcribes.

    `open(model, threads)` returns a recognizer of a file of this backend. `write(source, path, activations)` writes a file (a folder
    if `is_folder`) and returns the types by layer name; None: `quantize` writes the folder itself.
    """

    name: str  # the name people know
    title: str  # name and kind of file, for tables
    target: Target
    open: Callable[[str, int], Recognizer]
    aliases: tuple[str, ...] = ()  # other spellings that the command accepts
    extra: str | None = None  # of this package: pip install 'sottovoce[EXTRA]'
    packages: tuple[str, ...] = ()  # distributions whose versions influence the words
    stored: Callable[[NumberFormat], StoredType] | None = None  # how `write` stores layers of a format that the target does not refuse
    write: Callable[[Source, Path, str], dict[str, StoredType]] | None = None
    tensor_bytes: Callable[[QuantizedTensor, str], int] = packed_bytes  # of a weight in its file; the second is the part of the model
    file_name: str = "{}"  # of an export, from the name of the quantized folder
    is_folder: bool = False
    files: Callable[[], Collection[str]] = tuple  # names of all that `write` and `write_page` ever make in a folder, with "/"
    find_library: Callable[[str | Path | None], Path] | None = None  # what a page needs: the package for browsers, given or found
    write_page: Callable[[Path, str, Path, Source | None], None] | None = None  # adds a page for browsers; None: there is none
    keeps_token_limit: bool = False  # its file says after how many tokens a transcript ends
    activations: tuple[str, ...] = ()  # choices for the inputs of products, the default first; empty: the runtime decides
    recognizes: Callable[[Path], bool] = lambda _: False  # whether a path is a file of this backend
    origin: Callable[[Path], str | None] | None = None  # reads `ORIGIN` of its file (None: it has none); None: there is no place for it

    def need_packages(self) -> None:
        """Raise `MissingDependencyError`, with the command that installs it, if a package that runs its files is missing."""
        for package in self.packages:
            try:
                version(package)
            except PackageNotFoundError as exc:
                command = f"pip install 'sottovoce[{self.extra}]'" if self.extra else f"pip install {package}"
                raise MissingDependencyError(f"running {self.name} needs the package {package}; {command}") from exc


def begins_with(path: Path, magic: bytes) -> bool:
    """Whether a file begins with these bytes: what it is called tells nothing, other programs use the same endings."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
