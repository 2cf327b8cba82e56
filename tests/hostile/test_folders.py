"""Damaged and unusual model folders: every command ends with one sentence and exit code 1, or works. Never a traceback, never nothing."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from sottovoce import api
from sottovoce.checkpoint.manifest import MANIFEST, write_sealed
from sottovoce.core.affine import Affine
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.atomic_files import sha256
from tests.cli.test_cli import run

WEIGHTS, CONFIG, GENERATION, TOKENIZER = "model.safetensors", "config.json", "generation_config.json", "tokenizer.json"
Damage = Callable[[Path], None]


def without(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def cut(name: str, size: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


def text(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content) and None


def setting(name: str, **values: Any) -> Damage:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content | values), encoding="utf-8")

    return change


def unset(name: str, *keys: str) -> Damage:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if key not in keys}), encoding="utf-8")

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def apply(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, metadata={"format": "pt"})

    return apply


def to_folder(name: str) -> Damage:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def link(name: str, target: str) -> Damage:
    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / "moved")
        (folder / name).symlink_to(target)

    return change


def sharded_without_index(folder: Path) -> None:
    state = list(load_file(folder / WEIGHTS).items())
    for i, part in enumerate((dict(state[::2]), dict(state[1::2])), 1):
        save_file(part, folder / f"model-0000{i}-of-00002.safetensors", metadata={"format": "pt"})
    (folder / WEIGHTS).unlink()


def index_of_missing_shards(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    weight_map = dict.fromkeys(state, "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / WEIGHTS).unlink()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def read_only(folder: Path) -> None:
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)


def other_tokenizer(folder: Path) -> None:
    content = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    content["model"]["vocab"] = {token: i for token, i in content["model"]["vocab"].items() if i < 20}
    content["added_tokens"] = []
    (folder / TOKENIZER).write_text(json.dumps(content), encoding="utf-8")


FIRST = "model.encoder.layers.0.fc1.weight"
ORIGINAL: dict[str, Damage] = {
    "no weights": without(WEIGHTS),
    "no config": without(CONFIG),
    "no generation config": without(GENERATION),
    "no tokenizer": without(TOKENIZER),
    "no feature extractor": without("processor_config.json"),
    "empty folder": empty,
    "empty weights": text(WEIGHTS, b""),
    "weights cut in the header": cut(WEIGHTS, 100),
    "weights cut in the data": cut(WEIGHTS, 100_000),
    "weights are a page of HTML": text(WEIGHTS, "<html>not found</html>"),
    "weights are a pointer of LFS": text(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "weights claim a giant header": text(WEIGHTS, b"\xff" * 8 + b"{}"),
    "weights are a folder": to_folder(WEIGHTS),
    "config is a folder": to_folder(CONFIG),
    "broken link": link(WEIGHTS, "nowhere"),
    "link in a circle": link(WEIGHTS, WEIGHTS),
    "links to files elsewhere": link(WEIGHTS, "../moved"),
    "sharded without an index": sharded_without_index,
    "index of missing shards": index_of_missing_shards,
    "read-only": read_only,
    "config is empty": text(CONFIG, ""),
    "config is a list": text(CONFIG, "[]"),
    "config is a number": text(CONFIG, "7"),
    "config is not JSON": text(CONFIG, "{'a': 1}"),
    "config is UTF-16": text(CONFIG, '{"model_type": "whisper"}'.encode("utf-16")),
    "config without model type": unset(CONFIG, "model_type"),
    "unknown model type": setting(CONFIG, model_type="whisperer"),
    "another kind of model": setting(CONFIG, model_type="bert"),
    "width as text": setting(CONFIG, d_model="64"),
    "width null": setting(CONFIG, d_model=None),
    "width zero": setting(CONFIG, d_model=0),
    "width negative": setting(CONFIG, d_model=-64),
    "width gigantic": setting(CONFIG, d_model=10**12),
    "layers gigantic": setting(CONFIG, encoder_layers=10**9),
    "vocabulary gigantic": setting(CONFIG, vocab_size=10**13),
    "another width": setting(CONFIG, d_model=32),
    "heads that do not divide": setting(CONFIG, encoder_attention_heads=7),
    "more layers than weights": setting(CONFIG, decoder_layers=3),
    "fewer layers than weights": setting(CONFIG, decoder_layers=1),
    "eos null": setting(CONFIG, eos_token_id=None),
    "generation config is a list": text(GENERATION, "[]"),
    "generation config is not JSON": text(GENERATION, "{"),
    "max_length as text": setting(GENERATION, max_length="long"),
    "max_length zero": setting(GENERATION, max_length=0),
    "start beyond the vocabulary": setting(GENERATION, decoder_start_token_id=10**6),
    "eos as text": setting(GENERATION, eos_token_id="end"),
    "suppressed tokens as text": setting(GENERATION, suppress_tokens="all"),
    "forced tokens of another kind": setting(GENERATION, forced_decoder_ids=[[1, "a"]]),
    "tokenizer of another model": other_tokenizer,
    "tokenizer is not JSON": text(TOKENIZER, "{"),
    "tokenizer is a list": text(TOKENIZER, "[]"),
    "processor settings of another kind": text("processor_config.json", '{"feature_extractor": 3}'),
    "NaN in weights": tensors(lambda state: state[FIRST].fill_(float("nan"))),
    "infinite weights": tensors(lambda state: state[FIRST][0].fill_(float("inf"))),
    "weights all zero": tensors(lambda state: [tensor.zero_() for tensor in state.values()]),
    "a weight missing": tensors(lambda state: state.pop(FIRST)),
    "an extra tensor": tensors(lambda state: state.update(extra=torch.zeros(3))),
    "a weight of another shape": tensors(lambda state: state.update({FIRST: torch.zeros(5, 5)})),
    "a weight transposed": tensors(lambda state: state.update({FIRST: state[FIRST].T.clone()})),
    "weights as whole numbers": tensors(lambda state: state.update({FIRST: torch.ones_like(state[FIRST], dtype=torch.int64)})),
    "weights as float64": tensors(lambda state: state.update({n: t.double() for n, t in state.items()})),
    "weights as bfloat16": tensors(lambda state: state.update({n: t.bfloat16() for n, t in state.items()})),
    "no tensors": tensors(lambda state: state.clear()),
}


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda _content: None) -> None:
    """Make the checksums right again, as somebody who forges a folder would."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name in content["files"]:
        file = folder / name
        content["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    change(content)
    write_sealed(folder, content)


def sealed(damage: Damage) -> Damage:
    def apply(folder: Path) -> None:
        damage(folder)
        reseal(folder)

    return apply


def manifest(change: Callable[[dict[str, Any]], Any]) -> Damage:
    return lambda folder: reseal(folder, change)


PACKED, SCALE = "model.encoder.layers.0.fc1.weight_packed", "model.encoder.layers.0.fc1.weight_scale"
QUANTIZED: dict[str, Damage] = {
    "weights missing": without(WEIGHTS),
    "config missing": without(CONFIG),
    "manifest cut": cut(MANIFEST, 300),
    "manifest empty": text(MANIFEST, ""),
    "manifest is a list": text(MANIFEST, "[]"),
    "manifest is UTF-16": text(MANIFEST, "{}".encode("utf-16")),
    "a byte of the weights": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1] + b"\x7f") and None,
    "sealed, no layers": manifest(lambda content: content["plan"].update(layers=[])),
    "sealed, plan null": manifest(lambda content: content.update(plan=None)),
    "sealed, reports of another kind": manifest(lambda content: content.update(layers="all")),
    "sealed, version of the future": manifest(lambda content: content.update(format_version=99)),
    "sealed, a path outside": manifest(lambda content: content["files"].update({"../x": {"bytes": 1, "sha256": "0"}})),
    "sealed, gigantic shape": manifest(lambda content: content["plan"]["layers"][0].update(shape=[10**12, 10**12])),
    "sealed, codes missing": sealed(tensors(lambda state: state.pop(PACKED))),
    "sealed, codes of another shape": sealed(tensors(lambda state: state.update({PACKED: state[PACKED][:3].clone()}))),
    "sealed, codes as floats": sealed(tensors(lambda state: state.update({PACKED: state[PACKED].float()}))),
    "sealed, NaN scales": sealed(tensors(lambda state: state[SCALE].fill_(float("nan")))),
    "sealed, infinite scales": sealed(tensors(lambda state: state[SCALE].fill_(float("inf")))),
    "sealed, an extra tensor": sealed(tensors(lambda state: state.update(extra=torch.zeros(3)))),
    "sealed, no tensors": sealed(tensors(lambda state: state.clear())),
    "sealed, config gigantic": sealed(setting(CONFIG, d_model=10**12)),
    "sealed, layers gigantic": sealed(setting(CONFIG, encoder_layers=10**9)),
    "sealed, config of another kind": sealed(text(CONFIG, "[]")),
    "sealed, config without quantization": sealed(unset(CONFIG, "quantization_config")),
    "sealed, tokenizer of another model": sealed(other_tokenizer),
    "sealed, generation config of another kind": sealed(setting(GENERATION, max_length="long")),
    "read-only quantized": read_only,
    "an unlisted file": text("notes.txt", "mine"),
}
USABLE = {  # originals that are odd and still make a recognizer
    "no generation config", "links to files elsewhere", "read-only", "weights as float64", "weights as bfloat16", "an extra tensor",
    "weights as whole numbers", "eos null", "max_length zero", "forced tokens of another kind",
}  # fmt: skip
COUNT = len(ORIGINAL) + len(QUANTIZED)


@pytest.fixture(scope="module")
def quantized_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile") / "sound"
    api.quantize(model_folder, out, recipe=Recipe(method=method_named("rtn"), format=Affine(bits=4, group_size=32)))
    return out


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recording") / "noise.wav"
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    return file


def check(arguments: tuple[object, ...], made: Path | None = None) -> int:
    """Run a command; what it says must be whole. Return its exit code."""
    code, printed, shown = run(*arguments)
    assert code in (0, 1), (arguments, shown)
    assert "Traceback" not in shown
    if code == 0:
        assert printed.strip(), arguments
        assert made is None or made.exists()
    else:
        (sentence,) = [line for line in shown.splitlines() if line.startswith("Error: ")]
        assert len(sentence) > 40, sentence
        assert made is None or not made.exists()
    return code


@pytest.mark.parametrize("case", ORIGINAL)
def test_original_folders(case: str, model_folder: Path, recording: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    ORIGINAL[case](folder)
    out = tmp_path / "out"
    codes = [
        check(("quantize", folder, out, "--method", "rtn", "--group-size", 32, "--observer", "minmax"), out),
        check(("transcribe", folder, recording)),
        *(check((verb, folder)) for verb in ("inspect", "verify")),
        check(("export", folder, "transcribe.cpp", tmp_path / "x.gguf"), tmp_path / "x.gguf"),
    ]
    assert (codes[0] == 0) == (case in USABLE)
    assert codes[2:] == [1, 1, 1]  # it was not written by sottovoce
    if codes[0] == 0:
        assert check(("transcribe", out, recording)) == 0  # what was written can be used
    os.chmod(folder, 0o755)  # noqa: S103 - so that it can be cleared away


@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized_folders(case: str, quantized_folder: Path, recording: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quantized_folder, tmp_path / "model"))
    QUANTIZED[case](folder)
    codes = {
        "transcribe": check(("transcribe", folder, recording)),
        "verify": check(("verify", folder)),
        "inspect": check(("inspect", folder)),
        "export": check(("export", folder, "whisper.cpp", tmp_path / "x.bin", "--no-verify"), tmp_path / "x.bin"),
    }
    sound = case in ("read-only quantized", "an unlisted file")
    assert codes["verify"] == (0 if sound else 1)
    os.chmod(folder, 0o755)  # noqa: S103 - so that it can be cleared away


def test_the_documented_count() -> None:
    page = Path(__file__).parents[2] / "docs/reliability.md"
    assert f"{COUNT} damaged or unusual model folders" in page.read_text(encoding="utf-8")
