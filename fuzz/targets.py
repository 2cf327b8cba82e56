"""What reads bytes from strangers, each as a function of bytes that may raise documented errors only.

A target writes its bytes where its reader expects a file, in memory (/dev/shm) where there is such a place. `SEEDS` gives each some
well-formed inputs to start from, made by the project's own writers.
"""

import io
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors import SafetensorError

from sottovoce.bench import read_plan
from sottovoce.checkpoint.layout import layer_tensors
from sottovoce.checkpoint.load import read_weights
from sottovoce.checkpoint.manifest import MANIFEST, Manifest, read_manifest, write_manifest, write_sealed
from sottovoce.checkpoint.manifest_v1 import upgrade
from sottovoce.checkpoint.resume import StoredRun
from sottovoce.core.affine import Affine
from sottovoce.core.formats import format_named
from sottovoce.core.rtn import rtn
from sottovoce.data.audio import read_audio
from sottovoce.data.corpora import read_librispeech, read_spgispeech, read_tedlium
from sottovoce.data.manifest import read_manifest as read_data_manifest
from sottovoce.errors import CheckpointError, DataError, OutputError, RecipeError, SottovoceError
from sottovoce.evaluation.transcript_cache import TranscriptCache
from sottovoce.evaluation.transcripts import read_transcripts
from sottovoce.models.ctranslate2 import read_variables, to_transformers
from sottovoce.quantization.layer import LayerReport, LayerResult
from sottovoce.quantization.plan import Plan, PlannedLayer
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.plain_data import from_plain

Target = Callable[[bytes], None]


@cache
def scratch() -> Path:
    """A folder of this process's own, with what targets need beside their input."""
    memory = Path("/dev/shm")  # noqa: S108 - a place in memory; the name below is unguessable
    folder = Path(tempfile.mkdtemp(prefix="sottovoce-fuzz.", dir=memory if memory.is_dir() else None))
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("stm", "sph", "book", "val", "folder", ".out.unfinished"):
        (folder / name).mkdir()
    (folder / "sph" / "talk.sph").write_bytes(b"")
    (folder / "book" / "1-2-3.flac").write_bytes(b"")
    (folder / "folder" / "seed.safetensors").write_bytes(_weights())
    return folder


def _placed(name: str, data: bytes) -> Path:
    file = scratch() / name
    file.write_bytes(data)
    return file


def audio(data: bytes) -> None:
    samples = read_audio(data, name="fuzz")
    assert samples.ndim == 1
    assert samples.dtype == np.float32
    assert bool(np.isfinite(samples).all())


def manifest(data: bytes) -> None:
    read_data_manifest(_placed("manifest.jsonl", data))


def stm(data: bytes) -> None:
    read_tedlium([_placed("stm/talk.stm", data)])


def csv(data: bytes) -> None:
    read_spgispeech(_placed("val.csv", data))


def librispeech(data: bytes) -> None:
    read_librispeech([_placed("book/1-2.trans.txt", data)])


def plan(data: bytes) -> None:
    read_plan(_placed("plan.toml", data))


def transcripts(data: bytes) -> None:
    read_transcripts(_placed("heard.jsonl", data))


def journal(data: bytes) -> None:
    _placed(".kept.jsonl.unfinished", data)
    TranscriptCache(scratch() / "kept.jsonl", {"model": "m"}, ["a"])


def sottovoce_json(data: bytes) -> None:
    _placed(f"folder/{MANIFEST}", data)
    read_manifest(scratch() / "folder")


def sealed_json(data: bytes) -> None:
    """Any JSON object, correctly sealed: what a stranger who knows the format can write."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise DataError(str(exc)) from exc
    if not isinstance(content, dict):
        return
    try:
        write_sealed(scratch() / "folder", content)
    except (ValueError, RecursionError) as exc:
        raise DataError(str(exc)) from exc
    read_manifest(scratch() / "folder")


def model_bin(data: bytes) -> None:
    to_transformers(read_variables(_placed("model.bin", data)))


def book_weights(data: bytes) -> None:
    """Folders of books of levels, each with tensors of its own kinds."""
    _placed("folder/model.safetensors", data)
    read_weights(scratch() / "folder", BOOK_PLAN)


def weights(data: bytes) -> None:
    _placed("folder/model.safetensors", data)
    read_weights(scratch() / "folder", PLAN)


def config(data: bytes) -> None:
    """The description in a folder of version 1, which `read_manifest` makes a plan from."""
    shutil.copy(scratch() / "folder" / "seed.safetensors", scratch() / "folder" / "model.safetensors")
    _placed("folder/config.json", data)
    try:
        from_plain(Manifest, upgrade(VERSION_1, scratch() / "folder"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as exc:  # as `read_manifest` does
        raise CheckpointError(str(exc)) from exc


def unfinished(data: bytes) -> None:
    state = StoredRun(scratch() / "out")
    _placed(".out.unfinished/layer-00000.safetensors", data)
    state.finished_layers()


TARGETS: dict[str, tuple[Target, type[Exception] | None]] = {
    "audio": (audio, SottovoceError),
    "manifest": (manifest, SottovoceError),
    "stm": (stm, SottovoceError),
    "csv": (csv, SottovoceError),
    "librispeech": (librispeech, SottovoceError),
    "plan": (plan, RecipeError),
    "transcripts": (transcripts, SottovoceError),
    "journal": (journal, OutputError),
    "sottovoce_json": (sottovoce_json, SottovoceError),
    "sealed_json": (sealed_json, SottovoceError),
    "model_bin": (model_bin, SottovoceError),
    "weights": (weights, SottovoceError),
    "book_weights": (book_weights, SottovoceError),
    "config": (config, SottovoceError),
    "unfinished": (unfinished, None),
}
"""Each target, and the root of the errors that it documents (None: it raises nothing)."""


def check(name: str, data: bytes) -> bool:
    """Run a target; whether it accepted its input. Any error that is not documented passes through."""
    function, documented = TARGETS[name]
    try:
        function(data)
    except Exception as exc:
        if documented is None or not isinstance(exc, documented):
            raise
        return False
    return True


def _sound(kind: str, subtype: str | None = None, channels: int = 1) -> bytes:
    out, tone = io.BytesIO(), 0.3 * np.sin(np.arange(2400) / 5)
    soundfile.write(out, np.stack([tone] * channels, axis=1), 16000, format=kind, subtype=subtype)
    return out.getvalue()


def _sphere() -> bytes:
    header = b"NIST_1A\n   1024\nsample_count -i 2400\nsample_n_bytes -i 2\nchannel_count -i 1\nsample_byte_format -s2 01\n"
    header += b"sample_rate -i 16000\nsample_coding -s3 pcm\nend_head\n"
    return header.ljust(1024) + (8000 * np.sin(np.arange(2400) / 5)).astype("<i2").tobytes()


def _model_bin() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    values = np.ones((2, 3), np.float32).tobytes()
    variable = text("encoder/conv1/weight") + struct.pack("<BIIBI", 2, 2, 3, 0, len(values)) + values
    alias = struct.pack("<I", 1) + text("a") + text("encoder/conv1/weight")
    return struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 1) + variable + alias


def _config() -> dict[str, object]:
    scheme = {"targets": ["fc"], "weights": {"num_bits": 4, "symmetric": False, "group_size": 32}}
    return {"quantization_config": {"config_groups": {"group_0": scheme}}}


def _weights() -> bytes:
    from safetensors.torch import save

    torch.manual_seed(0)
    return bytes(save(layer_tensors("fc", rtn(torch.randn(4, 64), Affine(bits=4, group_size=32)))))


def _book_weights() -> bytes:
    from safetensors.torch import save

    torch.manual_seed(0)
    tensors = {name: tensor for book in BOOKS for name, tensor in layer_tensors(book, rtn(torch.randn(2, 256), format_named(book))).items()}
    return bytes(save(tensors))


def _layer() -> bytes:
    state = StoredRun(scratch() / "seed")
    state.folder.mkdir(exist_ok=True)
    quantized = rtn(torch.ones(2, 32), Affine(bits=4, group_size=32))
    report = LayerReport(name="fc", part="encoder", bits=4, bits_per_weight=4.6, weights=64, vulnerability=0.1, outlier_ratio=1.0)
    state.add_layer("fc", LayerResult(quantized, torch.ones(2), report))
    return state.layer_files[-1].read_bytes()


def _manifest_json() -> bytes:
    manifest = Manifest(source="m", recipe=Recipe(), plan=PLAN, calibration=None, environment={}, layers=(), files={})
    write_manifest(scratch() / "folder", manifest)
    return (scratch() / "folder" / MANIFEST).read_bytes()


PLAN = Plan(target="compressed-tensors", layers=(PlannedLayer(name="fc", part="encoder", format=Affine(), shape=(4, 64)),))
BOOKS = ("iq4_nl", "iq4_xs", "mxfp4", "nvfp4", "nf4", "pow2_3", "stochastic4_0")
BOOK_PLAN = Plan(
    target="torch",
    layers=tuple(PlannedLayer(name=name, part="encoder", format=format_named(name), shape=(2, 256)) for name in BOOKS),
)
VERSION_1: dict[str, Any] = {
    "source": "m",
    "calibration": None,
    "environment": {},
    "files": {},
    "recipe": {
        "method": {"kind": "rtn"},
        "grid": {"bits": 4, "group_size": 32, "symmetric": False, "scale": "search", "exact_minimum": False},
        "head_bits": None,
        "head_identity": 0.01,
        "padding_weight": 0.0,
        "frame_stride": 3,
        "rules": [],
    },
    "layers": [
        {
            "name": "fc",
            "part": "encoder",
            "bits": 4,
            "group_size": 32,
            "bits_per_weight": 4.6,
            "weights": 256,
            "vulnerability": 0.1,
            "outlier_ratio": 1.0,
        }
    ],
    "left_in_floating_point": [],
}
TOML = b"""models = ["m"]
methods = ["rtn", "strong"]
bits = [4, 3]
seeds = [0]
data = ["d"]
calibration = "c"
group_size = "row"
[method.strong]
base = "qep"
strength = 1.0
"""
SPGI = b'wav_filename|wav_filesize|transcript\na/1.wav|20|He said "five.\n'
HEARD = b'{"id": "a", "text": "x y", "reference": "x", "duration_s": 1.5, "tokens": [1, 2], "log_probabilities": [-0.5, -1]}\n'
STM = b""";; a comment
talk 1 speaker 0.5 2.25 <o,f0,male> i 'm here <unk>
talk 1 s 3 4 <o> ignore_time_segment_in_scoring
"""
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "audio": lambda: [
        _sound("WAV"), _sound("WAV", "FLOAT", 2), _sound("FLAC"), _sound("OGG"), _sound("MP3"), _sound("AIFF"), _sphere(),
    ],
    "manifest": lambda: [b'{"audio": "a.wav", "text": "x", "speaker": "s", "id": "i"}\n\n{"audio": "b/c.flac"}\n'],
    "stm": lambda: [STM],
    "csv": lambda: [SPGI],
    "librispeech": lambda: [b"1-2-3 HELLO THERE\n"],
    "plan": lambda: [TOML],
    "transcripts": lambda: [HEARD],
    "journal": lambda: [b'{"model": "m"}\n["k", ' + HEARD.strip() + b"]\n"],
    "sottovoce_json": lambda: [_manifest_json()],
    "sealed_json": lambda: [_manifest_json(), b'{"format_version": 1, "files": {"a": {"sha256": "0"}}}'],
    "model_bin": lambda: [_model_bin()],
    "weights": lambda: [_weights()],
    "book_weights": lambda: [_book_weights()],
    "config": lambda: [json.dumps(_config()).encode()],
    "unfinished": lambda: [_layer()],
}  # fmt: skip
