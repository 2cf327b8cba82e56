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
from sottovoce.backends.source import Source
from sottovoce.backends.whisper_cpp.header import MAGIC
from sottovoce.errors import ExportError

QUANTIZATION_VERSION = 2000  # added to the file type of quantized files


END_OF_TEXT = "<|endoftext|>"


SMALLEST_VOCABULARY = 51864  # whisper.cpp knows the special tokens by their places in OpenAI's vocabularies


TOP = {
    "conv1": "conv1",
    "conv2": "conv2",
    "embed_positions.weight": "positional_embedding",
    "embed_tokens.weight": "token_embedding.weight",
}


LAST_NORM = {"encoder": "ln_post", "decoder": "ln"}


BLOCK_NAMES = {
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    **{
        f"{old_attention}.{old}": f"{new_attention}.{new}"
        for old_attention, new_attention in {"self_attn": "attn", "encoder_attn": "cross_attn"}.items()
        for old, new in {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}.items()
    },
}


def write_ggml(source: Source, file: Path) -> dict[str, StoredType]:
    """Write `file`; return what each quantized tensor became, by its name in `transformers`.

    Raises `ExportError` for another family than Whisper, another vocabulary than OpenAI's, or a recipe that gives the matrices
    different types, before anything is written: whisper.cpp crashes on such files.
    """
    if source.family != "whisper":
        raise ExportError(f"whisper.cpp runs Whisper only, not a {source.family!r} model; export it to gguf or onnx")
    if source.config.vocab_size < SMALLEST_VOCABULARY or not source.model.tied:
        raise ExportError(
            f"whisper.cpp wants OpenAI's vocabulary ({SMALLEST_VOCABULARY} tokens or more) with a tied head; this model has "
            f"{source.config.vocab_size} tokens"
        )
    config = source.config
    if {config.encoder_ffn_dim, config.decoder_ffn_dim} != {4 * config.d_model}:
        raise ExportError(
            f"whisper.cpp wants feed-forward layers of 4 times the model's width ({4 * config.d_model}); these are of "
            f"{config.encoder_ffn_dim} and {config.decoder_ffn_dim}"
        )
    blocks = {name: to_blocks(name, weight) for name, weight in source.weights.items()}
    matrices = _matrices(source)
    kinds = {name: blocks[name][0] if name in blocks else "F16" for name in matrices}
    if len(set(kinds.values())) > 1:
        odd = next(name for name in matrices if kinds[name] != kinds[matrices[0]])
        raise ExportError(
            f"whisper.cpp holds one type for all matrices, but {matrices[0]} is {kinds[matrices[0]]} and {odd} is {kinds[odd]}; "
            "quantize with one width for all, head included (--target ggml), or export to gguf"
        )
    kind = kinds[matrices[0]]
    with file.open("wb") as out:
        _write_header(out, source, kind)
        for parameter, array in source.floats().items():
            module = parameter.removesuffix(".weight")
            name = _openai_name(parameter)
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
    tokens = _token_bytes(source)
    out.write(struct.pack("<i", len(tokens)))
    for token in tokens:
        out.write(struct.pack("<I", len(token)) + token)


def _token_bytes(source: Source) -> list[bytes]:
    """The bytes of every token before the end token; whisper.cpp itself names what follows."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    content = source.tokenizer()
    vocabulary = content["model"]["vocab"]
    end = vocabulary.get(END_OF_TEXT) or next(t["id"] for t in content["added_tokens"] if t["content"] == END_OF_TEXT)
    by_id = {index: piece for piece, index in vocabulary.items() if index < end}
    if by_id.keys() != set(range(end)):
        raise ExportError(f"the vocabulary has gaps before {END_OF_TEXT}, which whisper.cpp cannot hold")
    to_byte = {character: byte for byte, character in bytes_to_unicode().items()}
    return [bytes(to_byte[character] for character in by_id[i]) for i in range(end)]


def _write_tensor(out: BinaryIO, name: str, shape: tuple[int, ...], kind: int, data: np.ndarray) -> None:
    encoded = name.encode()
    out.write(struct.pack("<3i", len(shape), len(encoded), kind))
    out.write(struct.pack(f"<{len(shape)}i", *reversed(shape)))
    out.write(encoded)
    out.write(np.ascontiguousarray(data).tobytes())


def _openai_name(parameter: str) -> str:
    """`model.encoder.layers.0.fc1.weight` is `encoder.blocks.0.mlp.0.weight` there."""
    _, half, rest = parameter.split(".", 2)
    if rest.startswith("layers."):
        _, number, inner = rest.split(".", 2)
        module, _, kind = inner.rpartition(".")
        return f"{half}.blocks.{number}.{BLOCK_NAMES[module]}.{kind}"
    if rest.startswith("layer_norm."):
        return f"{half}.{LAST_NORM[half]}.{rest.removeprefix('layer_norm.')}"
    if rest in TOP:
        return f"{half}.{TOP[rest]}"
    return f"{half}.{rest}"
