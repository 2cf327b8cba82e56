"""Write a folder as sherpa-onnx 2.0 reads it."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sottovoce.backends.backend import StoredType
from sottovoce.backends.onnx_runtime.graph import export_graph, exporting
from sottovoce.backends.onnx_runtime.layout import DECODER, ENCODER
from sottovoce.backends.onnx_runtime.operators import stored_type
from sottovoce.backends.onnx_runtime.writer import halved, require_onnx, save_graph, with_operators, write_graphs
from sottovoce.backends.openai_names import openai_dimensions
from sottovoce.backends.openai_vocabulary import require_openai_like, special_tokens, token_bytes
from sottovoce.backends.sherpa_onnx.graph import (
    DECODER_INPUTS,
    DECODER_OUTPUTS,
    ENCODER_OUTPUTS,
    WhisperDecoderGraph,
    WhisperEncoderGraph,
)
from sottovoce.backends.sherpa_onnx.layout import FILES, NAME, TOKENS
from sottovoce.backends.source import Source
from sottovoce.errors import ExportError

WORD_START = "\u2581"  # SentencePiece's mark for a space
BYTES_OF_NAME = 6  # "<0x0A>"


def write_sherpa(source: Source, folder: Path, activations: str = "int8") -> dict[str, StoredType]:
    """Write the folder; return what each quantized tensor became, by its name in `transformers`.

    `activations`: whether the operators round their inputs to 8 bits ("int8") or not ("float32"). Raises `ExportError` for a family
    that sherpa-onnx does not run, or that is not built as it takes for granted.
    """
    onnx = require_onnx()
    if source.family not in FILES:
        raise ExportError(f"{NAME} runs {', '.join(FILES)}, not a {source.family!r} model; its folder runs in transformers as it is")
    if source.family == "whisper":
        require_openai_like(source, NAME)
        _write_whisper(onnx, source, folder, activations)
        tokens = token_bytes(source)
    else:
        source.end_token(NAME)
        write_graphs(onnx, source, folder, activations)
        for written, wanted in zip((ENCODER, DECODER), FILES["moonshine"], strict=True):
            for file in (folder / written).parent.glob(f"{Path(written).name}*"):  # weights beside a large graph go with it
                file.rename(folder / file.name)
            assert (folder / wanted).is_file()  # noqa: S101 - the names are the same
        (folder / ENCODER).parent.rmdir()
        tokens = piece_bytes(source)
    lines = (f"{base64.b64encode(token).decode()} {number}\n" for number, token in enumerate(tokens))
    (folder / TOKENS).write_text("".join(lines), encoding="ascii")
    return {name: stored_type(weight.format) for name, weight in source.weights.items()}


def _write_whisper(onnx: Any, source: Source, folder: Path, activations: str) -> None:
    network, settings = with_operators(source, activations), source.model.network.generation_config
    encoder_file, decoder_file = (folder / name for name in FILES["whisper"])
    decoder_graph = WhisperDecoderGraph(network, _ids(settings.suppress_tokens), _ids(settings.begin_suppress_tokens))
    encoder_graph = WhisperEncoderGraph(network)
    with exporting(network):
        arguments, free = encoder_graph.example(network.config.num_mel_bins)
        encoder = export_graph(encoder_graph, arguments, ["mel"], ENCODER_OUTPUTS, free)
        arguments, free = decoder_graph.example()
        decoder = export_graph(decoder_graph, arguments, DECODER_INPUTS, DECODER_OUTPUTS, free)
    save_graph(onnx, halved(onnx, encoder), encoder_file, metadata(source) | source.origin)
    save_graph(onnx, halved(onnx, decoder), decoder_file)


def metadata(source: Source) -> dict[str, str]:
    """Return what sherpa-onnx reads of the encoder's metadata, under the names of its script. Raises `ExportError`."""
    special = special_tokens(source)
    languages = special.languages
    begin = [special.start, languages["en"], special.transcribe] if special.multilingual else [special.start]
    numbers = {
        "version": 1,
        **openai_dimensions(source.config),
        "sot": special.start,
        "sot_index": 0,
        "eot": special.end,
        "blank_id": source.model.processor.tokenizer.convert_tokens_to_ids("\u0120"),  # a space, as byte-level encoding writes it
        "is_multilingual": int(special.multilingual),
        "no_speech": special.no_speech,
        "transcribe": special.transcribe,
        "translate": special.translate,
        "sot_prev": special.previous,
        "sot_lm": special.language_model,
        "no_timestamps": special.no_timestamps,
    }
    return {
        "model_type": f"whisper-{source.name}",
        "maintainer": "sottovoce",
        **{name: str(number) for name, number in numbers.items()},
        "sot_sequence": _joined(begin),
        "all_language_tokens": _joined(languages.values()),
        "all_language_codes": ",".join(languages),
        "non_speech_tokens": _joined(_ids(source.model.network.generation_config.suppress_tokens)),
    }


def piece_bytes(source: Source) -> list[bytes]:
    """Return the bytes of every piece of a SentencePiece-like vocabulary with byte fallback; none for special tokens."""
    content = source.tokenizer()
    special = {token["id"] for token in content.get("added_tokens", []) if token.get("special")}
    pieces = {number: piece for piece, number in content["model"]["vocab"].items()}
    found = []
    for number in range(source.config.vocab_size):
        piece = "" if number in special else pieces.get(number, "")
        if len(piece) == BYTES_OF_NAME and piece.startswith("<0x"):
            found.append(bytes([int(piece[3:5], 16)]))
        else:
            found.append(piece.replace(WORD_START, " ").encode())
    return found


def _ids(tokens: Sequence[int] | None) -> list[int]:
    return [token for token in tokens or () if token >= 0]


def _joined(numbers: Any) -> str:
    return ",".join(map(str, numbers))
