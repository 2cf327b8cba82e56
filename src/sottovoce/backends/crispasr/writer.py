"""Write a folder of CrispASR: GGUF with a block type per tensor, and what its loader wants beside it."""

from pathlib import Path

import numpy as np

from sottovoce.backends.backend import StoredType
from sottovoce.backends.crispasr.family import Family
from sottovoce.backends.crispasr.layout import MODEL, NAME
from sottovoce.backends.crispasr.moonshine import MOONSHINE
from sottovoce.backends.crispasr.qwen3_asr import QWEN3_ASR
from sottovoce.backends.ggml_blocks import stored_type, to_blocks
from sottovoce.backends.gguf_common import add_origin, require_gguf
from sottovoce.backends.source import Source
from sottovoce.errors import ExportError

FAMILIES: dict[str, Family] = {"moonshine": MOONSHINE, "qwen3_asr": QWEN3_ASR}


def write_crispasr(source: Source, folder: Path) -> dict[str, StoredType]:
    """Write the folder; return what each quantized tensor became, by its name in `transformers`.

    Raises `ExportError` for a family that CrispASR does not run, or for a model that is built in a way it does not compute.
    """
    gguf = require_gguf()
    if source.family not in FAMILIES:
        other = "; its Whisper backend reads files of whisper.cpp: export to whisper.cpp" if source.family == "whisper" else ""
        raise ExportError(f"{NAME} runs Moonshine and Qwen3-ASR only, not a {source.family!r} model{other}")
    family = FAMILIES[source.family]
    family.require(source)
    blocks = {name: to_blocks(name, weight) for name, weight in source.weights.items()}
    writer = gguf.GGUFWriter(str(folder / MODEL), family.architecture)
    writer.add_name(source.name)
    add_origin(source, writer)
    family.settings(source, writer)
    for name, array in family.inputs(source).items():
        writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
    floats = source.floats()
    for name, parameter in family.tensors(source):
        module, array = parameter.removesuffix(".weight"), floats[parameter]
        if module in blocks:
            kind, data = blocks[module]
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, np.ascontiguousarray(array, np.float32 if array.ndim < 2 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name, content in family.beside(source).items():
        (folder / name).write_bytes(content)
    return {name: stored_type(kind) for name, (kind, _) in blocks.items()}
