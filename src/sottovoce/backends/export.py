"""Write a file of another runtime, try it there, and only then give it its name."""

from dataclasses import dataclass
from pathlib import Path

from sottovoce.backends.agreement import Agreement, compare
from sottovoce.backends.backend import Backend, StoredType
from sottovoce.backends.own_files import names_its_origin, own_files
from sottovoce.backends.registry import backend_named, exporting_backends
from sottovoce.backends.source import Source, UnheldError, open_source
from sottovoce.data.dataset import DataSet
from sottovoce.data.load import load_data
from sottovoce.errors import ExportError, OutputError, RecipeError
from sottovoce.models.load import load_model
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.pipeline import QuantizedModel
from sottovoce.system.atomic_files import built_beside, real_place, swap_in
from sottovoce.system.notices import notice
from sottovoce.system.other_files import other_files
from sottovoce.system.progress import Progress, silent

CLIPS = Path(__file__).parent / "clips"  # English sentences by a synthetic voice

ROOMS = ("max_target_positions", "max_position_embeddings")  # what families call the positions of the decoder


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written.

    `backend`: name of the runtime it is for. `types`: how each layer is stored. `widened`: layers whose codes are narrower than what
    holds them. `agreement`: how the runtime's words agree with PyTorch's (None: not tried).
    """

    file: Path
    backend: str
    bytes: int
    types: dict[str, StoredType]
    widened: tuple[str, ...]
    agreement: Agreement | None


def export(
    source: str | Path | QuantizedModel,
    backend: str,
    file: str | Path,
    *,
    verify: bool = True,
    speech: str | Path | DataSet | None = None,
    overwrite: bool = False,
    language: str | None = None,
    activations: str | None = None,
    page: bool = False,
    original: str | SpeechModel | None = None,
    library: str | Path | None = None,
    progress: Progress = silent,
) -> Export:
    """Write the codes of a quantized folder as a file of another runtime ("transcribe.cpp", "whisper.cpp", "onnxruntime": a folder).

    Only bits are rearranged. `activations`, of onnxruntime: "int8" (default), whose kernels round the inputs of a matrix product to 8
    bits, or "float32", slower, whose words are PyTorch's. `verify`: load the file in its runtime, in a process of its own, transcribe
    `speech` (four English sentences that come along if omitted) and compare the words with PyTorch's. `page`, of onnxruntime: add a
    page that transcribes in a browser, with the npm package onnxruntime-web in the folder `library` (found if omitted); `original`: a
    model that is exported in floating point beside it, for the page to compare. Raises `ExportError` if the runtime cannot hold the
    codes, or the file does not load or disagrees; `MissingDependencyError` if the page's library is not found; `OutputError` if `file`
    exists (unless `overwrite`) or cannot be written. Then there is no new file.
    """
    runtime = _exporting(backend)
    assert runtime.write is not None  # noqa: S101 - as `_exporting` has made sure
    rounding = _activations(runtime, activations)
    target = real_place(file)
    refuse_existing_export(target, runtime, overwrite=overwrite)
    found = _library(runtime, page, original, library)
    opened = open_source(source)
    _name_lost_limit(opened, runtime)
    progress("export", 0, 2, f"writing {target.name}")
    with built_beside(target) as build:
        content = build / target.name
        if runtime.is_folder:
            content.mkdir(mode=0o755)
        try:
            types = runtime.write(opened, content, rounding)
        except UnheldError as exc:
            raise _made_for_another(opened, "it" if isinstance(source, QuantizedModel) else str(source), runtime, exc) from exc
        agreement = None
        if verify:
            progress("export", 1, 2, f"trying {target.name}")
            data = speech if isinstance(speech, DataSet) else load_data(CLIPS if speech is None else speech)
            agreement = compare(opened.model, runtime.name, content, data, language)
        if found is not None and runtime.write_page is not None:
            progress("export", 1, 2, f"adding the page to {target.name}")
            runtime.write_page(content, target.name, found, _original(original))
        swap_in(content, target)
    progress("export", 2, 2, f"wrote {target.name}")
    return Export(
        file=target,
        backend=runtime.name,
        bytes=sum(f.stat().st_size for f in ([target] if target.is_file() else target.rglob("*")) if f.is_file()),
        types=types,
        widened=tuple(name for name, weight in opened.weights.items() if weight.format.code_bits < types[name].bits),
        agreement=agreement,
    )


def _made_for_another(opened: Source, name: str, runtime: Backend, exc: UnheldError) -> ExportError:
    """Say what to do about codes that the runtime does not hold."""
    if not opened.target or opened.target == runtime.name:
        return exc
    reason = str(exc).partition("; ")[0]
    return ExportError(
        f"{name} was made for {opened.target}, and {runtime.name} does not hold its codes ({reason}); run `sottovoce quantize "
        f"{opened.model.source} OUT --target {runtime.name}` first, and export OUT"
    )


def _exporting(name: str) -> Backend:
    try:
        runtime = backend_named(name)
    except RecipeError as exc:
        raise ExportError(str(exc)) from exc
    if runtime.write is None:
        raise ExportError(
            f"{runtime.name} runs the quantized folder as it is; there is nothing to export. "
            f"Other runtimes: {', '.join(exporting_backends())}"
        )
    return runtime


def _name_lost_limit(source: Source, runtime: Backend) -> None:
    """Say so where transcripts of PyTorch end earlier than those of the file can."""
    limit = source.model.network.generation_config.max_length
    room = next((size for name in ROOMS if (size := getattr(source.config, name, None)) is not None), None)
    if not runtime.keeps_token_limit and limit and room and limit < room:
        notice(
            f"generation_config.json of {source.name} ends a transcript after {limit} tokens, and files of {runtime.name} have no place "
            f"for that: there a transcript may be longer, as far as the runtime lets it"
        )


def _library(runtime: Backend, page: bool, original: str | SpeechModel | None, library: str | Path | None) -> Path | None:
    if not page:
        if original is not None or library is not None:
            raise ExportError("an original or onnxruntime-web is given, and only a page uses them; add --page, or leave them out")
        return None
    if runtime.find_library is None:
        others = [name for name, backend in exporting_backends().items() if backend.find_library is not None]
        raise ExportError(f"{runtime.name} has no page for browsers; export to {others[0]}, or leave out --page")
    return runtime.find_library(library)


def _original(model: str | SpeechModel | None) -> Source | None:
    if model is None:
        return None
    return Source(model if isinstance(model, SpeechModel) else load_model(model), {})


def _activations(runtime: Backend, asked: str | None) -> str:
    if asked is None:
        return runtime.activations[0] if runtime.activations else ""
    if not runtime.activations:
        others = [name for name, backend in exporting_backends().items() if backend.activations]
        raise ExportError(f"{runtime.name} itself decides how inputs are rounded; leave activations out, or export to {others[0]}")
    if asked not in runtime.activations:
        raise ExportError(f"activations {asked!r} are not known; choose one of {', '.join(runtime.activations)}")
    return asked


def refuse_existing_export(target: Path, runtime: Backend, *, overwrite: bool) -> None:
    """Raise `OutputError` if `target` exists and must not be replaced; only exports for this runtime and what is empty ever are.

    A folder must say that sottovoce wrote it, and hold nothing that no export writes: that would go with it.
    """
    if not target.exists():
        return
    if not overwrite:
        raise OutputError(f"{target} exists already; give another name, or --overwrite to replace it")
    holds_something = any(target.iterdir()) if target.is_dir() else target.stat().st_size > 0
    if runtime.is_folder != target.is_dir() or (holds_something and not runtime.recognizes(target)):
        raise OutputError(f"{target} is not an export for {runtime.name}, so it is not replaced; remove it yourself")
    if not (holds_something and runtime.is_folder):
        return
    if others := other_files(target, own_files(target, runtime)):
        raise OutputError(
            f"{target} holds {others[0]}, which no export for {runtime.name} writes, so it is not replaced; move that away, or give "
            "another name"
        )
    if not names_its_origin(target, runtime):
        raise OutputError(f"{target} does not say that sottovoce wrote it, so it is not replaced; remove it yourself")
