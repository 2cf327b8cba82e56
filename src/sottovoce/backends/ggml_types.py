"""ggml's block types by name (`ggml.h`: `ggml_type`, `ggml_ftype`; `llama.h`: `llama_ftype`). Imports nothing heavy."""

from typing import NamedTuple


class BlockType(NamedTuple):
    """How ggml stores a block of neighboring weights of a row."""

    weights: int  # in one block
    bytes: int  # of one block
    bits: int  # of one code
    number: int  # of the type, at every tensor
    file_type: int  # of a whisper.cpp file whose matrices have this type, without the version of quantization
    gguf_file_type: int  # of a GGUF file most of whose weights have this type


BLOCK_TYPES: dict[str, BlockType] = {
    "Q4_0": BlockType(32, 18, 4, 2, 2, 2),
    "Q4_1": BlockType(32, 20, 4, 3, 3, 3),
    "Q5_0": BlockType(32, 22, 5, 6, 8, 8),
    "Q5_1": BlockType(32, 24, 5, 7, 9, 9),
    "Q8_0": BlockType(32, 34, 8, 8, 7, 7),
    "Q2_K": BlockType(256, 84, 2, 10, 10, 10),
    "Q3_K": BlockType(256, 110, 3, 11, 11, 11),
    "Q4_K": BlockType(256, 144, 4, 12, 12, 14),
    "Q5_K": BlockType(256, 176, 5, 13, 13, 16),
    "Q6_K": BlockType(256, 210, 6, 14, 14, 18),
}
F32, F16 = 0, 1  # numbers of the types that are no blocks; F16 is the file type of files without blocks, too
