"""How a recognizer is opened: the limit of tokens that follows the length of the audio."""

from pathlib import Path

import numpy as np
import pytest

from sottovoce import api
from sottovoce.backends.onnx_runtime.writer import write_onnx
from sottovoce.backends.source import Source
from sottovoce.backends.transcribe_cpp.writer import write_gguf
from sottovoce.errors import ModelError, RecipeError
from sottovoce.evaluation.recognizer import decoding_settings
from tests.conftest import make_tiny, make_tiny_moonshine

HEARD = [np.random.default_rng(0).standard_normal(17_000).astype(np.float32)]


def test_a_limit_of_tokens_in_pytorch_and_in_onnx_runtime(tmp_path: Path) -> None:
    model = make_tiny_moonshine()
    write_onnx(Source(model, {}), tmp_path / "m")
    limited = model.with_tokens_per_second(6.0)
    wanted = tuple(limited.greedy_decode(limited.encode(limited.features(HEARD)), None)[0][0])
    for source in (model, tmp_path / "m"):
        free, cut = api.open_recognizer(source), api.open_recognizer(source, tokens_per_second=6.0)
        assert cut.recognize(HEARD, None).recognitions[0].tokens == wanted
        assert len(free.recognize(HEARD, None).recognitions[0].tokens) > len(wanted)
        assert decoding_settings(free) != decoding_settings(cut)  # saved transcripts of the two are told apart


def test_a_limit_is_refused_where_there_can_be_none(tmp_path: Path, speech_folder: Path) -> None:
    with pytest.raises(ModelError, match="6 tokens a second is no limit for them; leave it out"):
        api.open_recognizer(make_tiny(), tokens_per_second=6.0)
    write_gguf(Source(make_tiny(), {}), tmp_path / "t.gguf")
    with pytest.raises(RecipeError, match="its runtime itself decides when a transcript ends; leave out --tokens-per-second"):
        api.open_recognizer(tmp_path / "t.gguf", tokens_per_second=6.0)
    recognizer = api.open_recognizer(make_tiny_moonshine())
    with pytest.raises(RecipeError, match="a recognizer decodes as it was opened"):
        api.transcribe(recognizer, [speech_folder], tokens_per_second=6.0)
