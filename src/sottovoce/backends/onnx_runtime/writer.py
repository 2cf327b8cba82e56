"""Write the ONNX folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sottovoce.backends.backend import StoredType
from sottovoce.backends.onnx_runtime.graph import (
    EncoderGraph,
    FirstStep,
    LaterStep,
    WindowedEncoderGraph,
    encoder_example,
    export_graph,
    exporting,
    first_example,
    later_example,
    merge_decoders,
)
from sottovoce.backends.onnx_runtime.layers import head_and_embedding, low_bit_linear
from sottovoce.backends.onnx_runtime.layout import DATA, DECODER, ENCODER, SHORT_CONTEXT
from sottovoce.backends.onnx_runtime.operators import stored_type
from sottovoce.backends.source import Source
from sottovoce.errors import ExportError, MissingDependencyError
from sottovoce.models.readiness import write_generation_config
from sottovoce.system.devices import share_weights
from sottovoce.system.plain_data import to_plain

FAMILIES = ("moonshine", "whisper")


LARGEST_PROTOBUF = 2**31 - 2**20  # bytes; beyond, weights go into a file beside


HALF_FROM = 4096  # floats from which on a tensor is stored as float16


def write_onnx(source: Source, folder: Path, activations: str = "int8") -> dict[str, StoredType]:
    """Write the folder; return what each quantized tensor became, by its name in `transformers`.

    `activations`: whether the operators round their inputs to 8 bits ("int8") or not ("float32"). Raises `ExportError` for a grid that
    the operators cannot hold.
    """
    onnx = require_onnx()
    if source.family not in FAMILIES:
        raise ExportError(
            f"a {source.family!r} model has no ONNX layout here; there are {', '.join(FAMILIES)}; its folder runs in transformers as it is"
        )
    network = source.model.network
    write_graphs(onnx, source, folder, activations)
    config = network.config.to_dict()
    config.pop("_name_or_path", None)
    config.pop("_attn_implementation", None)
    config["transformers.js_config"] = {"dtype": "fp32"}  # there, the name of files without a suffix; else a browser asks for others
    if source.short_context is not None:
        config[SHORT_CONTEXT] = to_plain(source.short_context)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_generation_config(network.generation_config, folder)
    source.model.processor.save_pretrained(folder)
    source.model.processor.feature_extractor.save_pretrained(folder)  # for readers that know no processor_config.json
    _save_vocabulary(source, folder)
    return {name: stored_type(weight.format) for name, weight in source.weights.items()}


def write_graphs(onnx: Any, source: Source, folder: Path, activations: str) -> None:
    """Write encoder and merged decoder. Raises `ExportError` for a grid that the operators cannot hold."""
    network = with_operators(source, activations)
    (folder / ENCODER).parent.mkdir(parents=True)
    with exporting(network):
        windowed = source.model.window_positions is not None
        encoder = export_graph((WindowedEncoderGraph if windowed else EncoderGraph)(network), *encoder_example(source))
        first = export_graph(FirstStep(network), *first_example(source))
        later = export_graph(LaterStep(network), *later_example(source))
    save_graph(onnx, halved(onnx, encoder), folder / ENCODER, source.origin)
    save_graph(onnx, halved(onnx, merge_decoders(onnx, first, later)), folder / DECODER)


def require_onnx() -> Any:
    """Return the package `onnx`. Raises `MissingDependencyError`."""
    try:
        import onnx
        import onnxscript  # noqa: F401 - the exporter of torch needs it
    except ImportError as exc:
        raise MissingDependencyError("exporting to ONNX needs onnx and onnxscript; pip install 'sottovoce[onnx]'") from exc
    return onnx


def with_operators(source: Source, activations: str) -> Any:
    """Return a copy of the network in which every quantized layer is a low-bit operator."""
    model = source.model
    network: Any = share_weights(model.network)
    for name, weight in source.weights.items():
        if name == model.embedding and model.tied:
            head, embedding = head_and_embedding(name, weight, activations)
            network.set_submodule(model.head, head)
            network.set_submodule(model.embedding, embedding)
        else:
            bias = network.get_submodule(name).bias
            network.set_submodule(name, low_bit_linear(name, weight, bias, activations))
    return network


def halved(onnx: Any, model: Any) -> Any:
    """Return the graph with large float32 weights stored as float16, which they are equal to, and widened when the file is loaded."""
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype != "float32" or array.size < HALF_FROM or not (array.astype("float16") == array).all():
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype("float16"), f"{name}/half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}/half"], [name], name=f"{name}/widen", to=onnx.TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    return model


def save_graph(onnx: Any, model: Any, file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a graph without the exporter's own notes, with `metadata`; weights that one file cannot hold go into a file beside."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata or {}))
    _drop_traces(model.graph)
    if model.ByteSize() < LARGEST_PROTOBUF:
        file.write_bytes(model.SerializeToString(deterministic=True))
    else:
        onnx.save(model, str(file), save_as_external_data=True, location=f"{file.name}{DATA}")


def _drop_traces(graph: Any) -> None:
    """Without the exporter's notes on every node, which hold paths of this machine."""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _drop_traces(attribute.g)
    del graph.metadata_props[:]
    for value in [*graph.input, *graph.output, *graph.value_info]:
        del value.metadata_props[:]
    del graph.value_info[:]


def _save_vocabulary(source: Source, folder: Path) -> None:
    """`vocab.json` and `added_tokens.json`, which some readers want beside `tokenizer.json`."""
    content = source.tokenizer()
    added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    settings = source.model.network.generation_config
    if source.family == "whisper" and not settings.is_multilingual:
        # onnx-asr writes language and task into every prompt; repeating the start token is the nearest that these models know.
        added |= dict.fromkeys(("<|en|>", "<|transcribe|>"), settings.decoder_start_token_id)
    if source.family == "whisper":
        added |= _unnamed_tokens({*content["model"]["vocab"].values(), *added.values()}, source.model.network.config.vocab_size)
    for name, table in (
        ("vocab.json", content["model"]["vocab"]),
        ("added_tokens.json", added),
    ):
        (folder / name).write_text(json.dumps(table, ensure_ascii=False) + "\n", encoding="utf-8")


def _unnamed_tokens(named: set[int], vocabulary: int) -> dict[str, int]:
    """Name the tokens that a Whisper model can emit and its tokenizer leaves out (timestamps, padding): onnx-asr stops at one of these."""
    return {f"<|token {number}|>": number for number in range(vocabulary) if number not in named}
