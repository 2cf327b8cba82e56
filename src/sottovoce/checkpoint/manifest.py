"""`sottovoce.json`: what a quantized folder is, with a sha256 of every other file, and of itself.

Its own digest stands in its last line and is that of the file with zeros in the digest's place.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from sottovoce.errors import CheckpointError, OutputError
from sottovoce.system.atomic_files import sha256, written_whole

FORMAT_VERSION = 1
MANIFEST = "sottovoce.json"
SEAL = re.compile(rb'  "sha256_of_this_file": "([0-9a-f]{64})"\n\}\n\Z')
OPEN = "0" * 64


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Seal `content` and write it, whole or not at all. Raises `OSError`."""
    content = {key: value for key, value in content.items() if key != "sha256_of_this_file"}
    text = json.dumps(content | {"sha256_of_this_file": OPEN}, indent=2, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    with written_whole(folder / MANIFEST) as file:
        file.write(text[::-1].replace(OPEN, digest[::-1], 1)[::-1])


def read_manifest(folder: Path) -> dict[str, Any]:
    """`sottovoce.json`, after checking its version, its own sha256 and that of every other file. Raises `CheckpointError`."""
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise CheckpointError(f"{folder}: has no readable {MANIFEST}, so it was not written by sottovoce") from exc
    try:
        manifest = json.loads(raw.decode("utf-8"))
        version, files = manifest["format_version"], manifest["files"]
        wanted = {str(name): str(entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(f"{path}: is damaged ({exc})") from exc
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder}: is of format version {version}, this sottovoce reads {FORMAT_VERSION}; install a newer one")
    seal = SEAL.search(raw)
    if seal is None or hashlib.sha256(raw[: seal.start(1)] + OPEN.encode() + raw[seal.end(1) :]).hexdigest() != (seal[1].decode()):
        raise CheckpointError(f"{path}: has changed since it was written (wrong sha256); fetch the folder again")
    for name, digest in wanted.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise CheckpointError(f"{folder}: the file {name!r} is missing; fetch the folder again")
        if sha256(file) != digest:
            raise CheckpointError(f"{file}: has changed since it was written (wrong sha256); fetch the folder again")
    return dict(manifest)


def store_confidence(folder: Path | str, confidence: dict[str, Any]) -> None:
    """Put what was fitted to the words of held-out speech into the folder's manifest. Raises `CheckpointError`, `OutputError`."""
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder) | {"confidence": confidence}
    try:
        write_manifest(folder, manifest)
    except OSError as exc:
        raise OutputError(f"{folder / MANIFEST}: cannot be written ({exc})") from exc
