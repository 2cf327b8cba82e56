"""The `.bin` file of whisper.cpp: one block type for all matrices, token embedding included.

Layout (whisper.cpp, `whisper_model_load`), little-endian: magic; 11 int32 of dimensions and file type; int32 n_mel, n_fft and the
float32 filters; int32 n_tokens and (uint32 length, bytes) of each; then tensors to the end: int32 n_dims, name length, type;
dimensions, fastest first; name; data. Names are OpenAI's.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sottovoce.backends.backend import StoredType
from sottovoce.backends.ggml_blocks import stored_type, to_blocks
from sottovoce.backends.ggml_types import BLOCK_TYPES, F16, F32
from sottovoce.backends.openai_names import openai_name
from sottovoce.backends.openai_vocabulary import require_openai_like, token_bytes
from sottovoce.backends.source import Source, UnheldError
from sottovoce.backends.transcribe_cpp import NAME as TRANSCRIBE_CPP
from sottovoce.backends.whisper_cpp import NAME
from sottovoce.backends.whisper_cpp.header import MAGIC

QUANTIZATION_VERSION = 2000  # added to the file type of quantized files


def write_ggml(source: Source, file: Path) -> dict[str, StoredType]:
    """Write `file`; return what each quantized tensor became, by its name in `transformers`.

    Raises `ExportError` for another family than Whisper, another vocabulary than OpenAI's, or a recipe that gives the matrices
    different types, before anything is written: whisper.cpp crashes on such files.
    """
    require_openai_like(source, "whisper.cpp")
    blocks = {name: to_blocks(name, weight) for name, weight in source.weights.items()}
    matrices = _matrices(source)
    kinds = {name: blocks[name][0] if name in blocks else "F16" for name in matrices}
    if len(set(kinds.values())) > 1:
        odd = next(name for name in matrices if kinds[name] != kinds[matrices[0]])
        raise UnheldError(
            f"whisper.cpp holds one type for all matrices, but {matrices[0]} is {kinds[matrices[0]]} and {odd} is {kinds[odd]}; "
            f"quantize with one width for all, head included (--target {NAME}), or export to {TRANSCRIBE_CPP}"
        )
    kind = kinds[matrices[0]]
    with file.open("wb") as out:
        _write_header(out, source, kind)
        for parameter, array in source.floats().items():
            module = parameter.removesuffix(".weight")
            name = openai_name(parameter)
            if module in blocks:
                _write_tensor(out, name, source.weights[module].codes.shape, BLOCK_TYPES[kind].number, blocks[module][1])
            elif "conv" in parameter and parameter.endswith("bias"):
                _write_tensor(out, name, (len(array), 1), F32, array.astype("<f4"))
            elif array.ndim == 1 or "embed_positions" in parameter:
                _write_tensor(out, name, array.shape, F32, array.astype("<f4"))
            else:
                _write_tensor(out, name, array.shape, F16, array.astype("<f2"))
    return {name: stored_type(block) for name, (block, _) in blocks.items()}


def _matrices(source: Source) -> list[str]:
    """Names of all modules whose weights are matrices that whisper.cpp wants in one type."""
    skip = "embed_positions"
    return [n.removesuffix(".weight") for n, array in source.floats().items() if array.ndim == 2 and skip not in n]


def _write_header(out: BinaryIO, source: Source, kind: str) -> None:
    config, extractor = source.config, source.model.processor.feature_extractor
    file_type = F16 if kind == "F16" else BLOCK_TYPES[kind].file_type + QUANTIZATION_VERSION
    out.write(
        struct.pack(
            "<I11i",
            MAGIC,
            config.vocab_size,
            config.max_source_positions,
            config.d_model,
            config.encoder_attention_heads,
            config.encoder_layers,
            config.max_target_positions,
            config.d_model,
            config.decoder_attention_heads,
            config.decoder_layers,
            config.num_mel_bins,
            file_type,
        )
    )
    filters = np.asarray(extractor.mel_filters, "<f4").T
    out.write(struct.pack("<2i", *filters.shape) + np.ascontiguousarray(filters).tobytes())
    tokens = token_bytes(source)
    out.write(struct.pack("<i", len(tokens)))
    for token in tokens:
        out.write(struct.pack("<I", len(token)) + token)


def _write_tensor(out: BinaryIO, name: str, shape: tuple[int, ...], kind: int, data: np.ndarray) -> None:
    encoded = name.encode()
    out.write(struct.pack("<3i", len(shape), len(encoded), kind))
    out.write(struct.pack(f"<{len(shape)}i", *reversed(shape)))
    out.write(encoded)
    out.write(np.ascontiguousarray(data).tobytes())
