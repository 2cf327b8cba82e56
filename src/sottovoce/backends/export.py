"""Write a file of another runtime, try it there, and only then give it its name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sottovoce.backends.agreement import Agreement, compare
from sottovoce.backends.onnx_runtime.operators import ACTIVATIONS
from sottovoce.backends.onnx_runtime.writer import write_onnx
from sottovoce.backends.source import open_source
from sottovoce.backends.transcribe_cpp.writer import write_gguf
from sottovoce.backends.whisper_cpp.writer import write_ggml
from sottovoce.data.dataset import DataSet
from sottovoce.data.load import load_data
from sottovoce.errors import ExportError, OutputError
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.system.atomic_files import built_beside, swap_in
from sottovoce.system.progress import Progress, silent

WRITERS: dict[str, Callable[..., dict[str, str]]] = {  # of a `Source` and a path
    "gguf": write_gguf,
    "ggml": write_ggml,
    "onnx": write_onnx,
}
CLIPS = Path(__file__).parent / "clips"  # English sentences by a synthetic voice


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written: `types` by layer, `widened` layers whose codes are narrower than the blocks that hold them, and how the
    runtime's words agree with PyTorch's (None: not asked)."""

    file: Path
    format: str
    bytes: int
    types: dict[str, str]
    widened: tuple[str, ...]
    agreement: Agreement | None


def export(
    source: str | Path | QuantizedModel,
    format: str,  # noqa: A002 - the word users know
    file: str | Path,
    *,
    verify: bool = True,
    speech: str | Path | DataSet | None = None,
    overwrite: bool = False,
    language: str | None = None,
    activations: str = "int8",
    progress: Progress = silent,
) -> Export:
    """Write the codes of a quantized folder as a file of transcribe.cpp ("gguf"), whisper.cpp ("ggml") or ONNX Runtime ("onnx", a folder).

    Only bits are rearranged. `activations`, of onnx: "int8", whose kernels round what goes into a matrix product to 8 bits, or
    "float32", slower, whose words are PyTorch's. `verify`: load the file in its runtime, in a process of its own, transcribe `speech`
    (four English sentences that come along if omitted) and compare the words with PyTorch's. Raises `ExportError` if the format
    cannot hold the codes, or the file does not load or disagrees; `OutputError` if `file` exists (unless `overwrite`) or cannot be
    written. Then there is no new file.
    """
    if format not in WRITERS:
        raise ExportError(f"format {format!r} is not known; choose one of {', '.join(WRITERS)}")
    if activations not in ACTIVATIONS:
        raise ExportError(f"activations {activations!r} are not known; choose one of {', '.join(ACTIVATIONS)}")
    if activations != "int8" and format != "onnx":
        raise ExportError(f"activations of a {format} file are its runtime's own choice; leave them out, or export to onnx")
    options = {"activations": activations} if format == "onnx" else {}
    target = Path(file).expanduser().absolute()
    _refuse_existing(target, folder=format == "onnx", overwrite=overwrite)
    opened = open_source(source)
    progress(f"writing {target.name}", 0, 2)
    with built_beside(target) as build:
        content = build / target.name
        if format == "onnx":
            content.mkdir(mode=0o755)
        types = WRITERS[format](opened, content, **options)
        agreement = None
        if verify:
            progress(f"trying {target.name}", 1, 2)
            data = speech if isinstance(speech, DataSet) else load_data(CLIPS if speech is None else speech)
            agreement = compare(opened.model, format, content, data, language)
        swap_in(content, target)
    progress(f"wrote {target.name}", 2, 2)
    return Export(
        file=target,
        format=format,
        bytes=sum(f.stat().st_size for f in ([target] if target.is_file() else target.rglob("*")) if f.is_file()),
        types=types,
        widened=tuple(name for name, weight in opened.weights.items() if weight.bits < _stored_bits(types[name])),
        agreement=agreement,
    )


def _stored_bits(kind: str) -> int:
    return int(kind[1]) if kind.startswith("Q") else int(kind.split()[0])


def _refuse_existing(target: Path, *, folder: bool, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise OutputError(f"{target} exists already; give another name, or --overwrite to replace it")
    if folder != target.is_dir() or (folder and any(target.iterdir()) and not (target / "onnx").is_dir()):
        raise OutputError(f"{target} is not an export of this format, so it is not replaced; remove it yourself")
