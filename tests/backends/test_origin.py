"""Every kind of file that has a place for it says which quantized folder it was written from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sottovoce.backends.registry import BACKENDS, exporting_backends
from sottovoce.backends.source import Source
from sottovoce.system.other_files import other_files
from tests.backends.conftest import small_openai
from tests.conftest import make_tiny, make_tiny_moonshine

DIGEST = "0123456789abcdef" * 4
# Those of onnxruntime are read in tests/api/test_certification.py: their graphs take long to export.
MODELS: dict[str, Callable[[], Any]] = {
    "transcribe.cpp": make_tiny,
    "crispasr": make_tiny_moonshine,
    "mlx": lambda: small_openai(layers=1),
    "sherpa-onnx": lambda: small_openai(layers=1),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_digest_comes_back(name: str, tmp_path: Path) -> None:
    backend, model = BACKENDS[name], MODELS[name]()
    assert backend.write is not None
    assert backend.origin is not None
    for file, source in (("of", Source(model, {}, digest=lambda: DIGEST)), ("none", Source(model, {}))):
        if backend.is_folder:
            (tmp_path / file).mkdir()
        backend.write(source, tmp_path / file, backend.activations[0] if backend.activations else "")
        assert backend.origin(tmp_path / file) == (DIGEST if file == "of" else None)
        assert not backend.is_folder or other_files(tmp_path / file, backend.files()) == []


def test_one_kind_of_file_has_no_place_for_it() -> None:
    assert [name for name, backend in exporting_backends().items() if backend.origin is None] == ["whisper.cpp"]
