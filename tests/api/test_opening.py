"""How a recognizer is opened: the limit of tokens that follows the length of the audio."""

from pathlib import Path

import pytest

from sottovoce import api
from sottovoce.backends.source import Source
from sottovoce.backends.transcribe_cpp.writer import write_gguf
from sottovoce.errors import ModelError, RecipeError
from tests.conftest import make_tiny, make_tiny_moonshine


def test_a_limit_is_refused_where_there_can_be_none(tmp_path: Path, speech_folder: Path) -> None:
    with pytest.raises(ModelError, match="6 tokens a second is no limit for them; leave it out"):
        api.open_recognizer(make_tiny(), tokens_per_second=6.0)
    write_gguf(Source(make_tiny(), {}), tmp_path / "t.gguf")
    with pytest.raises(RecipeError, match="its runtime itself decides when a transcript ends; leave out --tokens-per-second"):
        api.open_recognizer(tmp_path / "t.gguf", tokens_per_second=6.0)
    recognizer = api.open_recognizer(make_tiny_moonshine())
    with pytest.raises(RecipeError, match="a recognizer decodes as it was opened"):
        api.transcribe(recognizer, [speech_folder], tokens_per_second=6.0)
