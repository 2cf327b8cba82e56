"""A folder as sottovoce 0.1.0 wrote it: read as today's, to the same numbers."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from sottovoce import api
from sottovoce.checkpoint.load import load_quantized
from sottovoce.checkpoint.manifest import ConfidenceRecord, read_manifest, store_confidence, write_sealed
from sottovoce.core.affine import Affine
from sottovoce.errors import CheckpointError
from sottovoce.evaluation.confidence import ConfidenceMetrics, ConfidenceScaling, FittedConfidence
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Rule

FOLDER = Path(__file__).parent / "version_1"  # by FADE: 3 bits, encoder 4 bits, a decoder layer in floating point
WEIGHTS = "a3638636b78e726148da304a801b09d0841526c4ddca21f71a6fdb35d8fe0aa8"  # sha256 of all weights as version 0.1.0 reads them


def test_weights_are_those_that_the_old_version_reads() -> None:
    network, _ = load_quantized(FOLDER)
    digest = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    assert digest.hexdigest() == WEIGHTS


def test_it_is_read_and_verified_as_a_manifest_of_today() -> None:
    manifest = read_manifest(FOLDER)
    assert manifest.recipe.method == METHODS["fade"]
    assert manifest.recipe.format == Affine(bits=3)
    assert manifest.recipe.rules == (Rule(part="encoder", bits=4), Rule(match="decoder.*fc1", bits=16))
    assert {layer.format for layer in manifest.plan.layers if layer.part == "encoder"} == {Affine(bits=4)}
    assert {layer.format for layer in manifest.plan.layers if layer.part != "encoder"} == {Affine(bits=3)}
    assert manifest.plan.ignored == ("model.decoder.layers.0.fc1",)
    assert next(layer for layer in manifest.plan.layers if layer.part == "head").tie_group == "model.decoder.embed_tokens"
    assert manifest.calibration is not None
    assert len(manifest.calibration.utterances) == 4
    assert api.verify(FOLDER).layers == len(manifest.layers) == 16


def test_confidences_can_be_stored_and_the_manifest_is_then_of_today(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(FOLDER, tmp_path / "copy"))
    metrics = ConfidenceMetrics(
        words=1, accuracy=1.0, mean_confidence=0.5, expected_calibration_error=0.5, normalized_cross_entropy=0.0, bins=((None, None, 0),)
    )
    fitted = FittedConfidence(
        temperature=ConfidenceScaling(0.9), platt=ConfidenceScaling(0.8, 0.1),
        raw_metrics=metrics, temperature_metrics=metrics, platt_metrics=metrics,
        fitted_words=1,
    )  # fmt: skip
    store_confidence(copy, ConfidenceRecord(fitted=fitted, data="speech", seed=0))
    assert json.loads((copy / "sottovoce.json").read_text())["format_version"] == 2
    assert api.inspect(copy).confidence == ConfidenceRecord(fitted=fitted, data="speech", seed=0)
    assert api.verify(copy).layers == 16


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    for i, change in enumerate((lambda m: m.pop("recipe"), lambda m: m["recipe"].pop("grid"), lambda m: m["layers"][0].pop("part"))):
        copy = Path(shutil.copytree(FOLDER, tmp_path / str(i)))
        content = json.loads((copy / "sottovoce.json").read_text())
        change(content)
        write_sealed(copy, content)
        with pytest.raises(CheckpointError, match="is damaged"):
            read_manifest(copy)
