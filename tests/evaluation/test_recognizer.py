"""What a recognizer in PyTorch says of its files."""

import shutil
from pathlib import Path

from sottovoce import api
from sottovoce.core.affine import Affine
from sottovoce.evaluation.recognizer import TorchRecognizer
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe
from tests.conftest import make_tiny


def test_the_size_is_that_of_the_weights_that_are_loaded(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    size = (folder / "model.safetensors").stat().st_size
    shutil.copy(folder / "model.safetensors", folder / "model.fp32-00001-of-00001.safetensors")
    assert TorchRecognizer(api.load(folder)).stored_bytes == size
    model = api.load(folder)
    model.network.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(shards) > 1
    assert TorchRecognizer(api.load(folder)).stored_bytes == sum(shard.stat().st_size for shard in shards)


def test_the_size_of_a_model_without_a_folder_is_that_of_float16() -> None:
    model = make_tiny()
    assert TorchRecognizer(model).stored_bytes == 2 * sum(parameter.numel() for parameter in model.network.parameters())


def test_the_size_of_a_quantized_folder_is_that_of_its_weights(model_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(method=method_named("rtn"), format=Affine(bits=4, group_size=32))
    api.quantize(model_folder, tmp_path / "four", recipe=recipe)
    size = (tmp_path / "four" / "model.safetensors").stat().st_size
    shutil.copy(tmp_path / "four" / "model.safetensors", tmp_path / "four" / "other.safetensors")
    for runtime in (None, "compressed-tensors"):
        recognizer = api.open_recognizer(tmp_path / "four", runtime)
        assert recognizer.stored_bytes == size
