"""Whether an exported file comes from a quantized folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sottovoce.backends.export import export
from sottovoce.backends.registry import BACKENDS, runtime_of
from sottovoce.checkpoint.layout import WEIGHTS
from sottovoce.checkpoint.manifest import Manifest
from sottovoce.errors import ExportError, MissingDependencyError, RecipeError, SottovoceError, first_line
from sottovoce.models.load import local_folder
from sottovoce.system.atomic_files import sha256
from sottovoce.system.notices import notice


def check_origin(checkpoint: str | Path, folder: Path, manifest: Manifest) -> None:
    """Raise `RecipeError` if `checkpoint` is no export of the quantized `folder`, whose `manifest` was read.

    A file says by the hash of the folder's weights where it comes from. A file of a kind that has no place for that is compared with
    a new export of the folder. A file that could say so and does not is taken at the user's word, with a notice.
    """
    path = local_folder(checkpoint)
    runtime = runtime_of(path)
    if runtime is None:
        if path.resolve() != folder.resolve():
            raise RecipeError(f"{checkpoint}: is no exported file, so it comes from no other folder; leave --folder {folder} out")
        return
    backend = BACKENDS[runtime]
    if backend.origin is None:
        if not _exported_again_equals(path, folder, runtime):
            raise RecipeError(
                f"{checkpoint}: is not what {folder} exports for {runtime}; give the folder it comes from, or export it again"
            )
        return
    try:
        said = backend.origin(path)
    except MissingDependencyError as exc:
        notice(f"{checkpoint}: where it comes from is not checked ({exc})")
        return
    except SottovoceError:
        raise
    except Exception as exc:  # the readers of files raise many kinds for damaged ones
        raise ExportError(f"{checkpoint}: cannot be read as a file of {runtime} ({first_line(exc)}); export it again") from exc
    if said is None:
        notice(f"{checkpoint} does not say which folder it comes from, so that it is {folder} is not checked; export it again for that")
    elif said != manifest.files[WEIGHTS].sha256:
        raise RecipeError(f"{checkpoint}: was not exported from {folder}, whose weights are others; give the folder it comes from")


def _exported_again_equals(file: Path, folder: Path, runtime: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="sottovoce.") as place:
        again = export(folder, runtime, Path(place) / file.name, verify=False).file
        return again.stat().st_size == file.stat().st_size and sha256(again) == sha256(file)
