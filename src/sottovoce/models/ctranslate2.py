"""Read a faster-whisper (CTranslate2) Whisper folder into a `transformers` Whisper model.

The layout of `model.bin` (version 6): uint32 version; spec name; uint32 revision; uint32 variable count; per variable its
name, uint8 rank, uint32 dimensions, uint8 type, uint32 byte length and data; then uint32 alias count and (alias, name)
pairs. Names are a uint16 length (with the final NUL) and that many bytes. Source: CTranslate2,
`python/ctranslate2/specs/model_spec.py`.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.initialization import no_init_weights

from sottovoce.errors import ModelError
from sottovoce.models.whisper_settings import complete_generation_config
from sottovoce.system.json_object import read_json_object

BINARY_VERSION = 6
DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}
FLOAT_TYPES = (np.dtype("<f4"), np.dtype("<f2"))
HEAD_SIZE = 64  # every published Whisper has attention heads of 64


class _Reader:
    """Read little-endian fields from a buffer and refuse to run past its end."""

    def __init__(self, buffer: memoryview, name: str) -> None:
        self._buffer, self._name, self.offset = buffer, name, 0

    def take(self, n_bytes: int) -> memoryview:
        end = self.offset + n_bytes
        if end > len(self._buffer):
            raise ModelError(
                f"{self._name} is cut short: {n_bytes} bytes wanted at offset {self.offset}, "
                f"{len(self._buffer) - self.offset} left. Fetch the file again."
            )
        piece = self._buffer[self.offset : end]
        self.offset = end
        return piece

    def number(self, fmt: str) -> int:
        return int(struct.unpack(f"<{fmt}", self.take(struct.calcsize(fmt)))[0])

    def string(self) -> str:
        raw = bytes(self.take(self.number("H")))
        try:
            return raw.rstrip(b"\0").decode("utf-8")
        except UnicodeDecodeError as exc:
            raise ModelError(f"{self._name} holds a name that is not text at offset {self.offset}") from exc


def read_variables(*parts: Path) -> dict[str, np.ndarray]:
    """Read every variable of a `model.bin`, given as one file or as consecutive parts of it.

    Raises `ModelError` if the file is damaged, is of another version, or is not a Whisper model.
    """
    name = " + ".join(part.name for part in parts)
    with_data: memoryview
    if len(parts) == 1:
        with parts[0].open("rb") as file:
            if parts[0].stat().st_size == 0:
                raise ModelError(f"{parts[0]} is empty")
            # The map outlives the file object; arrays below are copies, so nothing refers to it on return.
            with_data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    else:
        with_data = memoryview(b"".join(part.read_bytes() for part in parts))
    reader = _Reader(with_data, name)
    version = reader.number("I")
    if version != BINARY_VERSION:
        raise ModelError(f"{name} has CTranslate2 binary version {version}, wanted {BINARY_VERSION}: convert the model again")
    spec = reader.string()
    if spec != "WhisperSpec":
        raise ModelError(f"{name} holds a {spec!r} model, wanted 'WhisperSpec'")
    reader.number("I")
    variables = dict(_read_variable(reader, name) for _ in range(reader.number("I")))
    for _ in range(reader.number("I")):
        alias, target = reader.string(), reader.string()
        if target not in variables:
            raise ModelError(f"{name}: alias {alias!r} points to {target!r}, which is not in the file")
        variables[alias] = variables[target]
    return variables


def _read_variable(reader: _Reader, file_name: str) -> tuple[str, np.ndarray]:
    name = reader.string()
    shape = tuple(reader.number("I") for _ in range(reader.number("B")))
    type_id = reader.number("B")
    if type_id not in DTYPES:
        raise ModelError(f"{file_name}: variable {name!r} has type {type_id}, wanted one of {sorted(DTYPES)}")
    dtype, n_bytes = DTYPES[type_id], reader.number("I")
    n_values = 1
    for size in shape:
        n_values *= size
    if n_bytes != n_values * dtype.itemsize:
        raise ModelError(f"{file_name}: variable {name!r} of shape {shape} ({dtype}) claims {n_bytes} bytes")
    try:
        return name, np.frombuffer(bytes(reader.take(n_bytes)), dtype).reshape(shape)
    except ValueError as exc:  # no values, but a shape beyond all bounds
        raise ModelError(f"{file_name}: variable {name!r} has the shape {shape}, which no array can have") from exc


def load_folder(folder: Path, parts: tuple[Path, ...] | None = None) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Return the model (float32, evaluation mode) and processor of a CTranslate2 Whisper folder.

    `parts`: files that make up `model.bin` where it is not one file of the folder. Raises `ModelError` for a damaged
    file, for int8 or int16 weights, and for a folder without `config.json` or `tokenizer.json`.
    """
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise ModelError(f"{folder} has model.bin but no {needed}: a whole faster-whisper folder is wanted")
    variables = read_variables(*(parts or (folder / "model.bin",)))
    for name, value in variables.items():
        if value.ndim and value.dtype not in FLOAT_TYPES:
            raise ModelError(
                f"{folder}: {name!r} is stored as {value.dtype}, so the original weights are lost. "
                "Give a float16 or float32 conversion, or the original model."
            )
    settings = _json_object(folder / "config.json")
    state = to_transformers(variables)
    tokenizer = _tokenizer(folder)
    config = _config(state, tokenizer)
    with no_init_weights():  # all of them are read
        model = WhisperForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [key for key in missing if key != "proj_out.weight"]  # tied to the embedding
    if missing or unexpected:
        raise ModelError(f"{folder}: weights do not make up a Whisper model; missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        suppress_tokens=settings.get("suppress_ids", []),
        begin_suppress_tokens=settings.get("suppress_ids_begin", []),
        alignment_heads=settings.get("alignment_heads"),
    )
    complete_generation_config(model, tokenizer, str(folder))
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    return model.eval(), WhisperProcessor(extractor, tokenizer)


def to_transformers(variables: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return CTranslate2 variables under `transformers` names, as float32 tensors (float16 to float32 is exact)."""
    state: dict[str, torch.Tensor] = {}

    def put(name: str, value: np.ndarray) -> None:
        state[name] = torch.from_numpy(np.array(value, dtype=np.float32))

    def norm(target: str, source: str) -> None:
        put(f"{target}.weight", variables[f"{source}/gamma"])
        put(f"{target}.bias", variables[f"{source}/beta"])

    def stacked(targets: list[str], source: str) -> None:
        weight, bias = variables[f"{source}/weight"], variables[f"{source}/bias"]
        for target, w, b in zip(targets, np.split(weight, len(targets)), np.split(bias, len(targets)), strict=True):
            put(f"{target}.weight", w)
            if not target.endswith("k_proj"):  # CTranslate2 stores a zero key bias where Whisper has none
                put(f"{target}.bias", b)

    def feed_forward(target: str, source: str) -> None:
        stacked([f"{target}.fc1"], f"{source}/ffn/linear_0")
        stacked([f"{target}.fc2"], f"{source}/ffn/linear_1")
        norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")

    def self_attention(target: str, source: str) -> None:
        stacked([f"{target}.self_attn.{p}_proj" for p in "qkv"], f"{source}/self_attention/linear_0")
        stacked([f"{target}.self_attn.out_proj"], f"{source}/self_attention/linear_1")
        norm(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")

    try:
        for conv in ("conv1", "conv2"):
            stacked([f"model.encoder.{conv}"], f"encoder/{conv}")
        put("model.encoder.embed_positions.weight", variables["encoder/position_encodings/encodings"])
        put("model.decoder.embed_positions.weight", variables["decoder/position_encodings/encodings"])
        put("model.decoder.embed_tokens.weight", variables["decoder/embeddings/weight"])
        for half in ("encoder", "decoder"):
            norm(f"model.{half}.layer_norm", f"{half}/layer_norm")
            for i in range(_n_layers(variables, half)):
                target, source = f"model.{half}.layers.{i}", f"{half}/layer_{i}"
                self_attention(target, source)
                feed_forward(target, source)
                if half == "decoder":
                    stacked([f"{target}.encoder_attn.q_proj"], f"{source}/attention/linear_0")
                    stacked([f"{target}.encoder_attn.{p}_proj" for p in "kv"], f"{source}/attention/linear_1")
                    stacked([f"{target}.encoder_attn.out_proj"], f"{source}/attention/linear_2")
                    norm(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
    except KeyError as exc:
        raise ModelError(f"model.bin has no variable {exc}: not a complete CTranslate2 Whisper model") from exc
    except ValueError as exc:
        raise ModelError(f"model.bin holds a variable of an unexpected shape: {exc}") from exc
    return state


def _n_layers(variables: dict[str, np.ndarray], half: str) -> int:
    return len(
        {name.split("/")[1] for name in variables if name.startswith(f"{half}/layer_") and not name.startswith(f"{half}/layer_norm")}
    )


def _json_object(file: Path) -> dict[str, Any]:
    """Read a JSON object of a model. Raises `ModelError` if the file is damaged."""
    try:
        return read_json_object(file)
    except (OSError, ValueError) as exc:
        raise ModelError(f"{file}: {exc}; download or convert the model again") from exc


def _tokenizer(folder: Path) -> WhisperTokenizer:
    model = _json_object(folder / "tokenizer.json").get("model", {})
    if not (isinstance(model, dict) and {"vocab", "merges"} <= model.keys()):
        raise ModelError(f"{folder / 'tokenizer.json'} has no BPE vocabulary and merges")
    tokenizer = WhisperTokenizer.from_pretrained(str(folder))
    if tokenizer.convert_tokens_to_ids("<|startoftranscript|>") == tokenizer.unk_token_id:
        raise ModelError(f"{folder / 'tokenizer.json'} has no <|startoftranscript|> token: not a Whisper tokenizer")
    return tokenizer


def _config(state: dict[str, torch.Tensor], tokenizer: WhisperTokenizer) -> WhisperConfig:
    vocab_size, d_model = state["model.decoder.embed_tokens.weight"].shape
    eos = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    layers = {
        half: len({name.split(".")[3] for name in state if name.startswith(f"model.{half}.layers.")}) for half in ("encoder", "decoder")
    }
    return WhisperConfig(
        vocab_size=vocab_size,
        num_mel_bins=state["model.encoder.conv1.weight"].shape[1],
        d_model=d_model,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=d_model // HEAD_SIZE,
        decoder_attention_heads=d_model // HEAD_SIZE,
        encoder_ffn_dim=state["model.encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=state["model.decoder.layers.0.fc1.weight"].shape[0],
        max_source_positions=state["model.encoder.embed_positions.weight"].shape[0],
        max_target_positions=state["model.decoder.embed_positions.weight"].shape[0],
        pad_token_id=eos,
        bos_token_id=eos,
        eos_token_id=eos,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        architectures=["WhisperForConditionalGeneration"],
    )
