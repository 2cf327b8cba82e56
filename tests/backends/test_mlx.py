"""A folder of mlx-whisper: its packing beside `mx.quantize`'s, its loader's weights beside ours, its words beside PyTorch's."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from sottovoce.backends.mlx.matrices import quantization, to_mlx
from sottovoce.backends.mlx.writer import mlx_name, sinusoids, write_mlx
from sottovoce.backends.registry import open_runtime, runtime_of, target_named
from sottovoce.backends.source import Source, open_source
from sottovoce.cli.main import main
from sottovoce.core.affine import BITS, GROUP_SIZES, Affine
from sottovoce.core.affine_minimum import AffineMinimum
from sottovoce.core.formats import NAMED
from sottovoce.core.fp4 import MXFP4, NVFP4
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.core.rtn import rtn
from sottovoce.errors import ExportError, MissingDependencyError, RecipeError
from sottovoce.models.whisper import Whisper
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe, Rule
from tests.backends.conftest import small_openai
from tests.conftest import forced_logits, make_tiny, make_tiny_moonshine, planned, quantized

NEAR = 0.02  # of the deviation of the logits: how far MLX may be from PyTorch, whose features are summed in another order


@pytest.fixture(scope="module")
def mx() -> Any:
    return pytest.importorskip("mlx.core")


@pytest.fixture(scope="module")
def whisper() -> Any:
    return pytest.importorskip("mlx_whisper")


@pytest.fixture(scope="module")
def small() -> Whisper:
    return small_openai(layers=1, positions=16)


def rounded(model: Whisper, number_format: NumberFormat, **settings: object) -> Source:
    recipe = Recipe(method=method_named("rtn"), format=number_format, **settings)  # type: ignore[arg-type]
    return open_source(quantized(model, recipe, target="mlx"))


def random_matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_our_packing_is_that_of_mx_quantize(mx: Any, bits: int, group_size: int) -> None:
    """MLX's own codes, taken out of its words, go back into the very same words."""
    weight = mx.array(random_matrix(5, 384, bits).numpy()).astype(mx.float16)
    words, scales, biases = (np.array(part) for part in mx.quantize(weight, group_size=group_size, bits=bits))
    stream = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").reshape(5, 384, bits)
    codes = (stream * (1 << np.arange(bits))).sum(2).astype(np.uint8)
    number_format = AffineMinimum(bits=bits, group_size=group_size)
    ours = QuantizedTensor(
        torch.from_numpy(codes), {"scale": torch.from_numpy(np.abs(scales)), "minimum": torch.from_numpy(biases)}, number_format
    )
    assert np.array_equal(to_mlx(ours)["weight"], words)


FORMATS = [
    *(AffineMinimum(bits=bits, group_size=group_size) for bits in BITS for group_size in GROUP_SIZES),
    Affine(bits=4, symmetric=True),
    Affine(bits=3, group_size=64, float16_min=True),
    MXFP4(),
    NVFP4(tensor_exponent=0),
]


@pytest.mark.parametrize("number_format", FORMATS, ids=str)
def test_mx_dequantize_reads_our_values(mx: Any, number_format: NumberFormat) -> None:
    weight = rtn(random_matrix(7, 384, 1) * 0.1, number_format)
    parts = {name: mx.array(part) for name, part in to_mlx(weight).items()}
    parts |= {name: parts[name].astype(mx.float32) for name in parts if parts[name].dtype == mx.float16}
    values = np.array(
        mx.dequantize(parts["weight"], parts["scales"], parts.get("biases"), **quantization(number_format)).astype(mx.float32)
    )
    assert np.array_equal(values, weight.dequantize().numpy())


def test_the_file_read_bit_by_bit(tmp_path: Path, small: Whisper) -> None:
    """By a reader of its own, from the description: code i of a row at bit i * bits of its words, `code * scale + bias`."""
    source = rounded(small, NAMED["mlx3"])
    write_mlx(source, tmp_path)
    tensors = load_file(tmp_path / "weights.safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["quantization"] == {"group_size": 64, "bits": 3}
    for name, weight in source.weights.items():
        stem = mlx_name(f"{name}.weight").removesuffix(".weight")
        words, scales, biases = (tensors[f"{stem}.{part}"] for part in ("weight", "scales", "biases"))
        assert (words.dtype, scales.dtype, biases.dtype) == (np.uint32, np.float16, np.float16)
        rows, columns = weight.shape
        assert words.shape == (rows, 3 * columns // 32)
        for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, 10), (1, 11), (2, 21), (3, 42)):  # 10 and 21 cross a word
            whole = sum(int(word) << (32 * place) for place, word in enumerate(words[row]))
            code = whole >> (3 * column) & 7
            group = column // 64
            value = code * np.float32(scales[row, group]) + np.float32(biases[row, group])
            assert value == weight.dequantize()[row, column].item(), (name, row, column)


def test_positions_are_those_of_mlx_whisper(whisper: Any) -> None:
    theirs = whisper.whisper.sinusoids
    assert np.abs(np.array(theirs(1500, 384)) - sinusoids(1500, 384)).max() < 3e-4  # theirs are computed in float32


@pytest.mark.parametrize("number_format", [AffineMinimum(bits=3, group_size=64), Affine(bits=4, symmetric=True), MXFP4()], ids=str)
def test_mlx_whisper_loads_the_same_weights(mx: Any, whisper: Any, tmp_path: Path, small: Whisper, number_format: NumberFormat) -> None:
    source = rounded(small, number_format, rules=(Rule(match="fc1", bits=16),))
    types = write_mlx(source, tmp_path)
    assert {kind.bits for kind in types.values()} == {number_format.code_bits}
    assert runtime_of(tmp_path) == "mlx"
    model = whisper.load_models.load_model(str(tmp_path), dtype=mx.float32)
    for name, weight in source.weights.items():
        module = model
        for part in mlx_name(f"{name}.weight").removesuffix(".weight").split("."):
            module = module[int(part)] if part.isdecimal() else getattr(module, part)
        scales = module.scales if isinstance(number_format, MXFP4) else module.scales.astype(mx.float32)
        biases = None if module.get("biases") is None else module.biases.astype(mx.float32)
        values = mx.dequantize(module.weight, scales, biases, **quantization(number_format))
        assert np.array_equal(np.array(values.astype(mx.float32)), weight.dequantize().numpy()), name
    floats = source.floats()
    assert np.array_equal(np.array(model.encoder.blocks[0].mlp1.weight), floats["model.encoder.layers.0.fc1.weight"])
    assert np.array_equal(np.array(model.encoder.conv1.weight), floats["model.encoder.conv1.weight"].transpose(0, 2, 1))
    assert np.array_equal(np.array(model.decoder.positional_embedding), floats["model.decoder.embed_positions.weight"])
    assert np.array_equal(np.array(model.decoder.ln.weight), floats["model.decoder.layer_norm.weight"])
    assert np.array(model.alignment_heads).tolist() == small.network.generation_config.alignment_heads


@pytest.mark.usefixtures("whisper")
def test_mlx_whisper_gives_the_logits_and_tokens_of_pytorch(mx: Any, tmp_path: Path, small: Whisper) -> None:
    result = quantized(small, Recipe(method=method_named("rtn"), format=AffineMinimum(bits=3, group_size=64)), target="mlx")
    source = open_source(result)
    write_mlx(source, tmp_path)
    recognizer = open_runtime("mlx", tmp_path, 1)
    random = np.random.default_rng(0)
    recordings = [(0.1 * random.standard_normal(20000)).astype(np.float32) for _ in range(2)]
    encoded = source.model.encode(source.model.features(recordings))
    prompt, settings = [50257, 50362], source.model.network.generation_config
    rows = [[*prompt, 1000 + i, 7] for i in range(2)]
    wanted = forced_logits(source.model, encoded, rows).numpy()
    for i, samples in enumerate(recordings):
        logits = np.array(recognizer.model.logits(mx.array([rows[i]]), recognizer.states(samples)).astype(mx.float32))[0]
        assert np.abs(logits - wanted[i]).max() < NEAR * wanted[i].std()
    for i, one in enumerate(recognizer.recognize(recordings, None).recognitions):
        tokens = [*one.tokens, settings.eos_token_id] if one.ended else list(one.tokens)
        scores = forced_logits(source.model, encoded[[i]], [[*prompt, *tokens[:-1]]])[0, len(prompt) - 1 :].numpy()
        scores[:, settings.suppress_tokens] = -np.inf
        scores[0, settings.begin_suppress_tokens] = -np.inf
        chosen = scores[range(len(tokens)), tokens]
        assert len(tokens) > 1
        assert (chosen > scores.max(1) - NEAR * wanted.std()).all()  # random weights: some steps have two best tokens
        assert one.language == "en"
    assert recognizer.stored_bytes == (tmp_path / "weights.safetensors").stat().st_size


def test_what_the_folder_cannot_hold_is_refused(tmp_path: Path, small: Whisper) -> None:
    def write(model: Whisper, **recipe: object) -> None:
        write_mlx(open_source(quantized(model, Recipe(method=method_named("rtn"), **recipe))), tmp_path)  # type: ignore[arg-type]

    with pytest.raises(ExportError, match="mlx holds one width and one group size for all layers; these have 3 bits.* and 4 bits"):
        write(small, format=NAMED["mlx3"], rules=(Rule(match="fc1", format=NAMED["mlx4"]),))
    with pytest.raises(ExportError, match="embed_tokens: mlx holds even steps.*not 'NF4.*; quantize with --target mlx"):
        write(small, format=NAMED["mlx3"], rules=(Rule(part="head", format=NAMED["nf4"]),))
    with pytest.raises(ExportError, match="OpenAI's vocabulary"):
        write_mlx(Source(make_tiny(), {}), tmp_path)
    with pytest.raises(ExportError, match="runs Whisper only, not a 'moonshine' model"):
        write_mlx(Source(make_tiny_moonshine(), {}), tmp_path)
    moved = copy.deepcopy(small)
    moved.network.model.encoder.embed_positions.weight.data[3, 5] += 0.5
    with pytest.raises(ExportError, match="computes the encoder's positions, and those of this model differ from them by up to 0.5"):
        write_mlx(Source(moved, {}), tmp_path)
    moved.network.model.encoder.conv1.bias.data[0] = 1e6
    moved.network.model.encoder.embed_positions.weight.data[3, 5] -= 0.5
    with pytest.raises(ExportError, match=r"encoder.conv1.bias: a weight exceeds the largest float16 number"):
        write_mlx(Source(moved, {}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number_format", "match"),
    [
        (Affine(bits=3, group_size=64), "holds a float16 minimum for each group"),
        (AffineMinimum(bits=7, group_size=64), "holds 2, 3, 4, 5, 6, 8 bits, not 7"),
        (AffineMinimum(bits=4, group_size=16), "holds groups of 32, 64, 128 weights, not groups of 16"),
        (Affine(bits=4, group_size=None, symmetric=True), "not a whole row"),
        (NAMED["nvfp4"], "NVFP4 without a scale of the tensor, not 'NVFP4'"),
    ],
)
def test_a_plan_that_mlx_cannot_hold_is_refused(small: Whisper, number_format: NumberFormat, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        planned(small, Recipe(method=method_named("rtn"), format=number_format), "mlx")


def test_the_target_has_real_minima() -> None:
    target = target_named("mlx")
    assert target.format(bits=3, group_size=64) == AffineMinimum(bits=3, group_size=64) == NAMED["mlx3"]
    assert target.format(symmetric=True) == Affine(symmetric=True)
    with pytest.raises(RecipeError, match="no groups of a whole row"):
        target.format(group_size=None)
    with pytest.raises(RecipeError, match="not by 'minmax'"):
        target.format(observer="minmax")


@pytest.mark.usefixtures("whisper")
def test_damaged_folders_are_named(tmp_path: Path, small: Whisper) -> None:
    source = rounded(small, NAMED["mlx4"])
    write_mlx(source, tmp_path)
    file, tensors = tmp_path / "weights.safetensors", load_file(tmp_path / "weights.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name != "encoder.conv1.bias"}, file)
    with pytest.raises(ExportError, match=r"has no tensor 'encoder.conv1.bias'"):
        open_runtime("mlx", tmp_path, 1)
    save_file({**tensors, "encoder.other": tensors["encoder.conv1.bias"]}, file)
    with pytest.raises(ExportError, match="mlx-whisper cannot load it"):
        open_runtime("mlx", tmp_path, 1)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ExportError, match="mlx-whisper cannot load it"):
        open_runtime("mlx", tmp_path, 1)
    file.unlink()
    with pytest.raises(ExportError, match="has no weights.safetensors"):
        open_runtime("mlx", tmp_path, 1)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlx_whisper", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sottovoce\[mlx\]'"):
        open_runtime("mlx", tmp_path, 1)


@pytest.mark.usefixtures("whisper")
def test_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: Whisper) -> None:
    """Quantize with the target, export, and transcribe what was written."""
    import soundfile

    small.network.save_pretrained(tmp_path / "model")
    small.processor.save_pretrained(tmp_path / "model")
    out, folder = str(tmp_path / "small-3bit"), tmp_path / "small-mlx"
    settings = ["--bits", "3", "--group-size", "64", "--target", "mlx", "--method", "rtn"]
    run = CliRunner().invoke(main, ["quantize", str(tmp_path / "model"), out, *settings])
    assert run.exit_code == 0, run.stderr
    run = CliRunner().invoke(main, ["export", out, "mlx", str(folder), "--no-verify", "--json"])
    assert run.exit_code == 0, run.stderr
    assert json.loads(run.stdout)["backend"] == "mlx"
    assert json.loads((folder / "config.json").read_text())["quantization"] == {"group_size": 64, "bits": 3}
    (tmp_path / "speech").mkdir()
    soundfile.write(tmp_path / "speech" / "noise.wav", np.random.default_rng(0).standard_normal(8000) * 0.1, 16000)
    run = CliRunner().invoke(main, ["transcribe", str(folder), str(tmp_path / "speech" / "noise.wav"), "--json"])
    assert run.exit_code == 0, run.stderr
    monkeypatch.setenv("SOTTOVOCE_LEDGER", str(tmp_path / "looks.jsonl"))
    certified = ["certify", str(folder), "--against", str(tmp_path / "model"), "--folder", out, "--audio", str(tmp_path / "speech")]
    run = CliRunner().invoke(main, [*certified, "--json"])
    assert run.exit_code == 0, run.stderr
    assert json.loads(run.stdout)["runtime"] == "mlx"
