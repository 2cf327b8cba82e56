"""Whether a written file gives the words of its model. Tried in a process of its own, since native runtimes may end it."""

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from sottovoce.backends.registry import open_runtime
from sottovoce.data.dataset import DataSet
from sottovoce.errors import ExportError
from sottovoce.evaluation.normalize import normalize
from sottovoce.evaluation.transcribe import transcribe_data
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.evaluation.wer import recognized_words
from sottovoce.evaluation.word_losses import edit_distance
from sottovoce.models.speech_model import SpeechModel
from sottovoce.system.spawn import spawn_context

MOST_DIFFERENT = 0.2  # of the words; runtimes round activations to 8 bits, so that near ties fall the other way


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """`equal` of `utterances` have the same words in both; `word_difference`: word error rate of the runtime with PyTorch's words
    as reference."""

    utterances: int
    equal: int
    word_difference: float


def compare(model: SpeechModel, runtime: str, file: Path, data: DataSet, language: str | None) -> Agreement:
    """Transcribe `data` in both, and compare.

    Raises `ExportError` if the file does not load, if more words differ than rounding explains, or if the model recognizes no word in
    PyTorch: then equal transcripts prove nothing.
    """
    ours = transcribe_data(model, data, language=language).transcripts
    if not recognized_words(ours):
        raise ExportError(
            f"{model.source} recognizes no word of {data.name} ({len(ours)} recordings) in PyTorch, so a comparison with it proves "
            "nothing; the file was deleted. Check the model with `sottovoce evaluate` (its tokenizer files, the language), give "
            "other speech with --speech, or export it with --no-verify"
        )
    arguments = (runtime, file, torch.get_num_threads(), data, language)
    try:
        with ProcessPoolExecutor(1, spawn_context(arguments)) as pool:
            theirs = pool.submit(_transcribe, *arguments).result()
    except BrokenProcessPool as exc:
        raise ExportError(f"the {runtime} runtime crashed on the written file; it was deleted") from exc
    agreement = agree(ours, theirs)
    if agreement.word_difference > MOST_DIFFERENT:
        raise ExportError(
            f"{agreement.word_difference:.0%} of the words that the {runtime} runtime recognizes differ from PyTorch's "
            f"({agreement.equal} of {agreement.utterances} utterances agree); the file was deleted. A model that recognizes nothing "
            "differs by chance: check it with `sottovoce evaluate`, and export it with --no-verify if it is as you want it"
        )
    return agreement


def agree(ours: tuple[Transcript, ...], theirs: tuple[Transcript, ...]) -> Agreement:
    """Compare the words of two transcriptions of the same data, after normalization by the language of `ours`."""
    pairs = [(normalize(a.text, a.language), normalize(b.text, a.language)) for a, b in zip(ours, theirs, strict=True)]
    words = sum(len(a.split()) for a, _ in pairs)
    errors = sum(edit_distance(a, b) for a, b in pairs)
    return Agreement(
        utterances=len(pairs),
        equal=sum(a == b for a, b in pairs),
        word_difference=errors / words if words else float(errors > 0),
    )


def _transcribe(runtime: str, file: Path, threads: int, data: DataSet, language: str | None) -> tuple[Transcript, ...]:
    from transformers import logging

    logging.set_verbosity_error()
    return transcribe_data(open_runtime(runtime, file, threads), data, language=language).transcripts
