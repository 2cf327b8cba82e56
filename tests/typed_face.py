"""The Python face as a user's type checker sees it. `mypy --strict` checks this file (`make lint`); nothing runs it."""

from pathlib import Path
from typing import assert_type

import sottovoce


def use(folder: Path) -> None:
    """Call the verbs, and say which types they return."""
    recipe = sottovoce.Recipe(method=sottovoce.FADE(), format=sottovoce.Affine(bits=3, group_size=64))
    assert_type(sottovoce.quantize("bundled:tiny.en", folder, recipe=recipe, calibration=folder), sottovoce.QuantizedModel)
    assert_type(sottovoce.inspect(folder), sottovoce.Manifest)
    tuned = assert_type(sottovoce.tune(folder, folder, calibration=folder, settings=sottovoce.TuneSettings(steps=8)), sottovoce.TuneResult)
    assert_type(tuned.record, sottovoce.TuneRecord)
    assert_type(sottovoce.inspect(folder).plan, sottovoce.Plan)
    evaluated = assert_type(sottovoce.evaluate(folder, folder), sottovoce.Evaluation)
    assert_type(evaluated.score.wer, float)
    assert_type(sottovoce.fit_confidence(folder, folder), sottovoce.FittedConfidence)
    recognizer = assert_type(sottovoce.open_recognizer(folder), sottovoce.Recognizer)
    done = assert_type(sottovoce.transcribe(recognizer, [folder], confidence=True), sottovoce.Transcription)
    assert_type(sottovoce.word_confidences(recognizer, done.transcripts[0]), list[sottovoce.WordConfidence])
    assert_type(sottovoce.export(folder, "onnxruntime", folder), sottovoce.Export)
    assert_type(sottovoce.run_bench("recipe.toml", folder, data=folder), sottovoce.BenchOutcome)
    assert_type(sottovoce.write_report(folder), Path)
    assert_type(sottovoce.METHODS["fade"].title, str)
    assert_type(sottovoce.load_data(folder).utterances[0], sottovoce.Utterance)
