"""GGUF for transcribe.cpp: block types per tensor, float16 for the other matrices, tokenizer and all settings inside."""

from pathlib import Path

import numpy as np

from sottovoce.backends.backend import StoredType
from sottovoce.backends.ggml_blocks import stored_type, to_blocks
from sottovoce.backends.ggml_types import BLOCK_TYPES, F16
from sottovoce.backends.gguf_common import add_origin, require_gguf
from sottovoce.backends.source import Source
from sottovoce.backends.transcribe_cpp.layout import Layout
from sottovoce.backends.transcribe_cpp.moonshine_layout import MOONSHINE
from sottovoce.backends.transcribe_cpp.whisper_layout import WHISPER
from sottovoce.errors import ExportError

GGUF_LAYOUTS: dict[str, Layout] = {"moonshine": MOONSHINE, "whisper": WHISPER}


def write_gguf(source: Source, file: Path) -> dict[str, StoredType]:
    """Write `file`; return what each quantized tensor became, by its name in `transformers`.

    Raises `ExportError` for a family or a grid that the runtime cannot hold, before anything is written.
    """
    gguf = require_gguf()
    if source.family not in GGUF_LAYOUTS:
        raise ExportError(
            f"a {source.family!r} model has no GGUF layout here; there are {', '.join(sorted(GGUF_LAYOUTS))}; "
            "its folder runs in transformers as it is"
        )
    layout = GGUF_LAYOUTS[source.family]
    names, floats = layout.names(source), source.floats()
    if missing := sorted(names.keys() ^ floats.keys()):
        raise ExportError(f"the model's parameter {missing[0]!r} has no place in the {layout.architecture} layout")
    blocks = {name: to_blocks(name, weight) for name, weight in source.weights.items()}
    types = {name: kind for name, (kind, _) in blocks.items()}
    most = max(types.values(), key=lambda kind: sum(source.weights[n].codes.numel() for n in types if types[n] == kind)) if types else None
    writer = gguf.GGUFWriter(str(file), layout.architecture)
    writer.add_string("general.basename", layout.architecture)
    writer.add_string("general.size_label", _size_label(sum(array.size for array in floats.values())))
    writer.add_uint32("general.file_type", F16 if most is None else BLOCK_TYPES[most].gguf_file_type)
    writer.add_uint32("general.quantization_version", 2)
    writer.add_string("stt.variant", source.name)
    add_origin(source, writer)
    layout.settings(source, writer)
    for name, array in layout.inputs(source).items():
        writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
    for name, called in names.items():
        module = name.removesuffix(".weight")
        if module in blocks:
            kind, data = blocks[module]
            writer.add_tensor(called, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            wide = floats[name].ndim < 2 or layout.float32(name)
            writer.add_tensor(called, np.ascontiguousarray(floats[name], np.float32 if wide else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: stored_type(kind) for name, (kind, _) in blocks.items()}


def _size_label(parameters: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M")):
        if parameters >= size:
            return f"{parameters / size:.1f}{letter}" if letter == "B" else f"{parameters / size:.0f}{letter}"
    return f"{parameters / 1000:.0f}K"
