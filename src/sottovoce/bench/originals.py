"""Load what all cells of a bench share: models, data sets, and what the originals make of them."""

import json
import os
import time
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sottovoce.bench.cells import (
    CellStore,
    Environment,
    LabelsKey,
    Made,
    ReferenceCell,
    ReferenceKey,
    ReferenceResult,
    cell_name,
)
from sottovoce.bench.plan import BenchPlan
from sottovoce.checkpoint.load import load, refuse_quantized
from sottovoce.data.dataset import DataSet, need_texts
from sottovoce.data.hub import PREFIX
from sottovoce.data.load import load_data
from sottovoce.evaluation.teacher_forced import TeacherForcedEvaluator, TeacherForcedOutput
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.system.atomic_files import written_whole
from sottovoce.system.plain_data import from_plain, to_plain
from sottovoce.system.versions import environment


class Originals:
    """The full-precision models and the data sets of a bench, each loaded once per process, and the originals' own output.

    The original's transcripts of a data set are a cell. Its decoder states, which every divergence needs, and its transcripts of
    calibration samples lie in the folder `cache`.
    """

    def __init__(self, plan: BenchPlan, store: CellStore, cache_folder: Path, data_root: Path) -> None:
        self.plan, self.store, self.cache, self.data_root = plan, store, cache_folder, data_root
        # Each with its digest.
        self.model: Callable[[str], tuple[SpeechModel, str]] = cache(self._load_model)
        self.data: Callable[[str], tuple[DataSet, str]] = cache(self._load_data)
        self.reference: Callable[[str, str], TeacherForcedOutput] = cache(self._find_reference)
        self.evaluator: Callable[[str, str], TeacherForcedEvaluator] = cache(self._make_evaluator)

    @cached_property
    def environment(self) -> Environment:
        """What of this process can influence a result."""
        return Environment(versions=environment(), threads=torch.get_num_threads())

    def calibration_sample(self, seed: int) -> DataSet:
        """Return the utterances that `seed` draws from the calibration set, of all that it has: `limit` is of the test sets."""
        return self._calibration.sample(self.plan.utterances, seed)

    @cached_property
    def _calibration(self) -> DataSet:
        return self._load(str(self.plan.calibration), None)

    def reference_key(self, model: str, data: str) -> ReferenceKey:
        """Return the key of the original's cell on a data set."""
        return ReferenceKey(
            model=model,
            weights=self.model(model)[1],
            data=data,
            recordings=self.data(data)[1],
            language=self.plan.language,
            environment=self.environment,
        )

    def has_reference(self, model: str, data: str) -> bool:
        """Tell whether the original's output on a data set is stored, cell and states."""
        key = self.reference_key(model, data)
        return self.store.finished(key, ReferenceCell) is not None and self._states_file(key).is_file()

    def labels(self, model: str, seed: int) -> dict[str, tuple[int, ...]]:
        """Return the original's transcripts of a calibration sample as tokens by recording, from the cache where they are."""
        data = self.calibration_sample(seed)
        key = LabelsKey(weights=self.model(model)[1], recordings=data.digest(), language=self.plan.language, environment=self.environment)
        file = self.cache / f"{cell_name(key)}.json"
        if not file.is_file():
            speech = prepare_speech(self.model(model)[0], data, language=self.plan.language)
            labels = dict(zip(speech.ids, map(tuple, speech.transcripts), strict=True))
            with written_whole(file) as handle:
                json.dump(to_plain(labels), handle)
        return from_plain(dict[str, tuple[int, ...]], json.loads(file.read_text(encoding="utf-8")))

    def _load_model(self, name: str) -> tuple[SpeechModel, str]:
        model = refuse_quantized(load(name))
        return model, model.digest()

    def _load_data(self, name: str) -> tuple[DataSet, str]:
        data = self._load(name, self.plan.limit)
        need_texts(data, "the word error rate of a bench", "without texts, `sottovoce certify` compares two models")
        return data, data.digest()

    def _load(self, name: str, at_most: int | None) -> DataSet:
        return load_data(name if name.startswith(PREFIX) else self.data_root / name, at_most=at_most)

    def _make_evaluator(self, model: str, data: str) -> TeacherForcedEvaluator:
        return TeacherForcedEvaluator(self.model(model)[0], self.data(data)[0])

    def _states_file(self, key: ReferenceKey) -> Path:
        return self.cache / f"{cell_name(key)}.safetensors"

    def _find_reference(self, model: str, data: str) -> TeacherForcedOutput:
        key = self.reference_key(model, data)
        states_file, cell = self._states_file(key), self.store.finished(key, ReferenceCell)
        if cell is not None and cell.result is not None and states_file.is_file():
            states, transcripts = load_file(states_file), cell.result.transcripts
            return TeacherForcedOutput(transcripts, tuple(states[str(i)] for i in range(len(transcripts))))
        started = time.perf_counter()
        output: TeacherForcedOutput = self.evaluator(model, data).evaluate(self.model(model)[0], self.plan.language)
        self.cache.mkdir(parents=True, exist_ok=True)
        partial = states_file.with_name(f".{os.getpid()}.{states_file.name}")
        save_file({str(i): state.contiguous() for i, state in enumerate(output.states)}, partial)
        partial.replace(states_file)
        made = Made(seconds={"total": time.perf_counter() - started})
        self.store.write(ReferenceCell(key=key, result=ReferenceResult(transcripts=output.transcripts), made=made))
        return output
