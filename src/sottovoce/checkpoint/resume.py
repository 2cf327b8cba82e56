"""What a quantization has finished so far, beside its output, so that a stopped run can go on to the same bytes.

`.NAME.unfinished/` holds a lock, `inputs.json` (everything that determines the result), `transcripts.jsonl` (calibration transcripts
as they are made), one file per finished layer and one for how far a tuning has come, each written whole. Work of several steps has a
folder of that kind for each. It takes about as much disk as the finished output (a tuning, four times what it moves), and is removed when
that is there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sottovoce.checkpoint.layout import layer_tensors
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.errors import (
    CheckpointError,
    DataError,
    ExportError,
    MachineError,
    MissingDependencyError,
    OutputError,
    SottovoceError,
)
from sottovoce.quantization.layer import LayerReport, LayerResult
from sottovoce.quantization.run_state import RunState
from sottovoce.system.atomic_files import clear_leftovers, written_whole
from sottovoce.system.json_lines import append_lines, drop_torn_line, whole_lines
from sottovoce.system.plain_data import from_plain, to_plain

LAYER, INPUTS, TRANSCRIPTS, LOCK = "layer", "inputs.json", "transcripts.jsonl", "lock"
VALUES = ".values.jsonl"
TENSORS = ".state.safetensors"


@dataclass(frozen=True, kw_only=True)
class _StoredLayer:
    """What is in a layer's file beside its tensors."""

    name: str
    format: NumberFormat
    report: LayerReport


class StoredRun(RunState):
    """The folder of one output's unfinished run. Nothing else writes there inside of `exclusive_run`."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        self.target = target
        self.folder = target.parent / f".{target.name}.unfinished"

    def stage(self, name: str) -> "StoredRun":
        """Return a run of its own within this one, for work of several steps. Transcripts stay with this one. Raises `OutputError`."""
        stage = StoredRun(self.target)
        stage.folder = self.folder / name
        try:
            stage.folder.mkdir(exist_ok=True)
        except OSError as exc:
            raise self._unwritable(exc) from exc
        return stage

    def values(self, name: str) -> list[Any]:
        """Return the plain data added under `name` so far. A line that was being written when the run was stopped is left out."""
        return whole_lines(self.folder / f"{name}{VALUES}")

    def add_value(self, name: str, value: Any) -> None:
        """Add plain data under `name`. Raises `OutputError`."""
        self._append(self.folder / f"{name}{VALUES}", [value])

    @property
    def layer_files(self) -> list[Path]:
        """The files of finished layers, in the order they were finished."""
        return sorted(self.folder.glob(f"{LAYER}-*.safetensors"))

    def transcripts(self) -> dict[str, tuple[int, ...]]:
        """Return the calibration transcripts made so far. A line that was being written when the run was stopped is left out."""
        return {name: tuple(tokens) for name, tokens in whole_lines(self.folder / TRANSCRIPTS)}

    def add_transcripts(self, made: Mapping[str, Sequence[int]]) -> None:
        """Add calibration transcripts. Raises `OutputError`."""
        self._append(self.folder / TRANSCRIPTS, [[name, list(tokens)] for name, tokens in made.items()])

    def _append(self, path: Path, values: Sequence[Any]) -> None:
        try:
            append_lines(path, values)
        except OSError as exc:
            raise self._unwritable(exc) from exc

    def finished_layers(self) -> dict[str, LayerResult]:
        """Return the finished layers, in their order. One that cannot be read whole is quantized again, and so are all after it."""
        found, files, read = dict[str, LayerResult](), self.layer_files, 0
        for i, file in enumerate(files):
            try:
                name, result = _read_layer(file, i)
            except (SafetensorError, OSError, CheckpointError, DataError, ValueError, KeyError, TypeError):
                break
            found[name], read = result, i + 1
        for damaged in files[read:]:
            damaged.unlink()
        return found

    def add_layer(self, name: str, result: LayerResult) -> None:
        """Add the next finished layer. Raises `OutputError`."""
        tensors = layer_tensors(LAYER, result.weight)
        if result.bias is not None:
            tensors["bias"] = result.bias
        about = to_plain(_StoredLayer(name=name, format=result.weight.format, report=result.report))
        self._save(self.folder / f"{LAYER}-{len(self.layer_files):05d}.safetensors", tensors, about)

    def tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors that were set last under `name`; None: there are none, or they cannot be read whole."""
        try:
            return _read_tensors(self.folder / f"{name}{TENSORS}")
        except (SafetensorError, OSError, CheckpointError, ValueError, KeyError, TypeError):
            return None

    def set_tensors(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Set tensors under `name` in place of those before. Raises `OutputError`."""
        self._save(self.folder / f"{name}{TENSORS}", tensors, about)

    def _save(self, file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        partial = file.with_suffix(".partial")
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        try:
            save_file(tensors, partial, metadata={"about": json.dumps(about), "sha256": _digest(tensors, about)})
            with partial.open("rb") as handle:
                os.fsync(handle.fileno())
            partial.replace(file)
        except (OSError, SafetensorError) as exc:
            partial.unlink(missing_ok=True)
            raise self._unwritable(exc) from exc

    def begin(self, inputs: Mapping[str, Any], *, resume: bool) -> None:
        """Go on with a run of the same `inputs` (plain data) if asked to, else start over. Raises `OutputError` if the inputs differ."""
        file, wanted = self.folder / INPUTS, json.loads(json.dumps(inputs))
        if resume and file.is_file():
            known = json.loads(file.read_text(encoding="utf-8"))
            if known != wanted:
                different = sorted(key for key in known.keys() | wanted.keys() if known.get(key) != wanted.get(key))
                raise OutputError(
                    f"{self.target}: the unfinished run differs in {', '.join(different).replace('_', ' ')}; give what it had, or leave "
                    "--resume out and give --overwrite to start again"
                )
            self._drop_torn_lines()
            return
        for old in (*self.layer_files, *self.folder.glob(f"*{VALUES}"), *self.folder.glob(f"*{TENSORS}"), self.folder / TRANSCRIPTS):
            old.unlink(missing_ok=True)
        for stage in self.folder.iterdir():
            if stage.is_dir():
                shutil.rmtree(stage)
        try:
            with written_whole(file) as handle:
                json.dump(wanted, handle)
        except OSError as exc:
            raise self._unwritable(exc) from exc

    def _drop_torn_lines(self) -> None:
        """Make every file of lines one that can be added to, those of stages too."""
        try:
            for path in self.folder.rglob("*.jsonl"):
                drop_torn_line(path)
        except OSError as exc:
            raise self._unwritable(exc) from exc

    def _unwritable(self, exc: Exception) -> OutputError:
        return OutputError(
            f"{self.target}: writing failed ({exc}). Finished layers are kept. Free some space and give the same command with --resume"
        )


def has_unfinished_run(target: Path) -> bool:
    """Whether a run of `target` was begun and has not ended."""
    return (StoredRun(target).folder / INPUTS).is_file()


@contextmanager
def exclusive_run(target: Path, *, resume: bool, overwrite: bool) -> Iterator[StoredRun]:
    """Hold the unfinished run of `target` for this process alone.

    Raises `OutputError` if another process is writing `target`, or if there is an unfinished run and neither `resume` nor `overwrite`
    says what to do with it. It is kept when the run is stopped, the disk is full, the machine does not do (another process has ended, too
    many processes), a package is missing or an export fails, and goes away when it ends, or fails for another reason.
    """
    work = StoredRun(target)
    try:
        work.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(work.folder / LOCK, timeout=0)
        lock.acquire()
        if not (work.folder / LOCK).exists():
            raise OutputError(f"{target}: another process has just finished writing it; look at that, or try again")
    except filelock.Timeout as exc:
        raise OutputError(f"{target}: another process is writing it; wait for that one, or choose another output") from exc
    except OSError as exc:
        raise OutputError(f"{target}: cannot be written ({exc.strerror}); choose another output") from exc
    finished = False
    try:
        layers = len(list(work.folder.rglob(f"{LAYER}-*.safetensors")))
        if (layers or any(work.folder.rglob(f"*{TENSORS}"))) and not (resume or overwrite):
            done = f"{layers} layers finished" if layers else "some steps of its tuning taken"
            raise OutputError(f"{target}: an unfinished run is there, {done}; --resume continues it, --overwrite starts again")
        clear_leftovers(target)
        yield work
        finished = True
    except SottovoceError as exc:
        # A refusal would come again; a full disk, a lost process, a package that is not installed yet or a check at the end may not.
        finished = not isinstance(exc, OutputError | MachineError | MissingDependencyError | ExportError)
        raise
    finally:
        if finished or not (work.layer_files or (work.folder / TRANSCRIPTS).is_file()):
            shutil.rmtree(work.folder, ignore_errors=True)
        lock.release()


def _read_layer(file: Path, index: int) -> tuple[str, LayerResult]:
    if file.stem != f"{LAYER}-{index:05d}":
        raise CheckpointError(f"{file}: a layer before it is missing")
    tensors, about = _read_tensors(file)
    layer = from_plain(_StoredLayer, about)
    bias = tensors.pop("bias", None)
    weight = QuantizedTensor.unpack({key.removeprefix(f"{LAYER}."): tensor for key, tensor in tensors.items()}, layer.format)
    return layer.name, LayerResult(weight, bias, layer.report)


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file written by `StoredRun` and what it says of them. Raises `CheckpointError` if it has changed, and others."""
    with safe_open(file, "pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        metadata = stored.metadata()
    about = json.loads(metadata["about"])
    if metadata["sha256"] != _digest(tensors, about):
        raise CheckpointError(f"{file}: has changed since it was written")
    return tensors, about


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())  # NumPy has no 8-bit floats
    return digest.hexdigest()
