"""The quick part of `benchmarks/same_codes.py`: rounding tiny.en, which needs no speech, gives the record's codes."""

import json

import pytest
import same_codes as script

from sottovoce.backends.registry import target_named
from sottovoce.models.load import load_model
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe
from sottovoce.system.plain_data import to_plain
from sottovoce.system.versions import processor
from tests.conftest import quantized


@pytest.mark.parametrize(("bits", "target"), zip((4, 3), script.TARGETS, strict=True))
def test_rounded_codes_are_those_of_the_record(bits: int, target: str) -> None:
    record = script.record_of(json.loads(script.RECORD.read_text()), to_plain(processor()))
    key = f"tiny.en, {target}, {bits} bits, rtn"
    if key not in record["digests"]:
        pytest.skip(f"there is no record of {processor().name}, whose sums of scale errors may round in other ways")
    recipe = Recipe(method=METHODS["rtn"], format=target_named(target).format(bits=bits))
    found = script.digests(quantized(load_model("bundled:tiny.en"), recipe, target=target))
    assert found == record["digests"][key]
