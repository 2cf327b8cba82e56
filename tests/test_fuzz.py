"""Every finding of the fuzzers, and random damage to well-formed inputs: only documented errors, whatever comes."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).parent.parent / "fuzz"


def load_targets() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_targets", FUZZ / "targets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_targets"] = module
    spec.loader.exec_module(module)
    return module


targets = load_targets()
KEPT = sorted(FUZZ.glob("corpus/*/*"))


@pytest.mark.parametrize("file", KEPT, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_findings_stay_mended(file: Path) -> None:
    targets.check(file.parent.name, file.read_bytes())


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_seeds_are_understood(name: str) -> None:
    understood = [targets.check(name, seed) for seed in targets.SEEDS[name]()]
    # A model.bin of one variable is read, but is no Whisper; the sealed example names a file that is not there.
    assert any(understood) or name == "model_bin"


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_is_an_error_at_most(name: str, data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(targets.SEEDS[name]())))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(seed)))
        gone = data.draw(st.integers(0, 8))
        seed[at : at + gone] = data.draw(st.binary(max_size=8))
    targets.check(name, bytes(seed))
