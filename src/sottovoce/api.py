"""The verbs of the package: `load`, `quantize`, `evaluate`, `transcribe`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sottovoce.calibrate import assign_folds
from sottovoce.checkpoint import load_quantized, refuse_existing, save_quantized
from sottovoce.data import DataSet, Utterance, load_data
from sottovoce.errors import RecipeError
from sottovoce.evaluate.confidence import FittedConfidence, fit_to_transcripts
from sottovoce.evaluate.score import Score, score_transcripts
from sottovoce.evaluate.transcribe import Transcription, transcribe_data
from sottovoce.evaluate.transcripts import Transcript, read_transcripts
from sottovoce.memory import peak_memory_bytes
from sottovoce.models import SpeechModel, load_model
from sottovoce.progress import Progress, silent
from sottovoce.quantize import QuantizedModel, prepare_speech, quantize_model
from sottovoce.recipe import Recipe, resolve

HUB_SURPLUS = 10  # utterances fetched from the Hub for each one that is drawn


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Score and timing of a model on a data set; `reference`: the same of the model it was compared with.

    `model_bytes`: the weights on disk, or as float16 would be where they lie elsewhere; `peak_memory_bytes`: of the whole process.
    """

    score: Score
    transcription: Transcription
    model_bytes: int
    peak_memory_bytes: int
    reference: "Evaluation | None" = None

    @property
    def rtfx(self) -> float:
        """Seconds of audio transcribed per second of work."""
        return self.transcription.audio_s / (self.transcription.encoder_s + self.transcription.decoder_s)


def load(model: str | Path) -> SpeechModel:
    """A recogniser by Hub id, folder (transformers, faster-whisper, or quantized by us) or `bundled:NAME`."""
    return load_model(model, quantized_loader=load_quantized)


def quantize(
    model: str | Path | SpeechModel,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    calibration: str | Path | DataSet | None = None,
    utterances: int | None = 128,
    seed: int = 0,
    batch_size: int = 8,
    language: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> QuantizedModel:
    """Quantize `model` by `recipe` (FADE at 4 bits if omitted) and write the result to the folder `out`.

    `calibration`: speech to calibrate on, of which `utterances` are drawn by `seed`; transcripts are not needed. Same inputs
    and seed give the same bytes. Raises a `SottovoceError` (see `sottovoce.errors`) and leaves `out` as it was.
    """
    recipe = recipe or Recipe()
    refuse_existing(Path(out).expanduser().absolute(), overwrite=overwrite)
    speech_model = model if isinstance(model, SpeechModel) else load(model)
    resolve(speech_model, recipe)  # what does not fit is refused before any work
    speech = None
    if recipe.method.streams:
        if calibration is None:
            raise RecipeError(
                "this method calibrates on speech: give calibration data (a folder or manifest), or choose method 'rtn'"
            )
        data = calibration if isinstance(calibration, DataSet) else _calibration_data(calibration, utterances)
        speech = prepare_speech(speech_model, data.draw(utterances, seed), language=language, progress=progress)
    result = quantize_model(
        speech_model, recipe, speech, batch_size=batch_size, language=language, seed=seed, progress=progress
    )
    save_quantized(result, out, overwrite=overwrite)
    return result


def evaluate(
    model: str | Path | SpeechModel,
    data: str | Path | DataSet,
    *,
    against: str | Path | SpeechModel | None = None,
    limit: int | None = None,
    language: str | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Word error rate of `model` on `data` (its first `limit` utterances), compared utterance by utterance with `against`."""
    data = data.take(limit) if isinstance(data, DataSet) else load_data(data, at_most=limit)
    reference = None if against is None else evaluate(against, data, language=language, progress=progress)
    model = _loaded(model)
    transcription = transcribe_data(model, data, language=language, progress=progress)
    return Evaluation(
        score=score_transcripts(transcription.transcripts, reference.transcription.transcripts if reference else None),
        transcription=transcription,
        model_bytes=_stored_bytes(model),
        peak_memory_bytes=peak_memory_bytes(),
        reference=reference,
    )


def score(transcripts: str | Path, *, against: str | Path | None = None) -> tuple[Score, Score | None]:
    """Scores of a transcript file, and those of the reference system's file it is compared with. No model is needed."""
    reference = None if against is None else read_transcripts(against)
    return (
        score_transcripts(read_transcripts(transcripts), reference),
        None if reference is None else score_transcripts(reference),
    )


def fit_confidence(
    model: str | Path | SpeechModel,
    data: str | Path | DataSet,
    *,
    limit: int | None = None,
    seed: int = 0,
    language: str | None = None,
    progress: Progress = silent,
) -> FittedConfidence:
    """Fit temperature and Platt scaling of word confidences on one half of `data` (with texts) and measure them on the other.

    The halves share no speaker where speakers are known. Use speech the model was not calibrated on. Raises `DataError` if
    there are too few words to fit or to judge.
    """
    model = _loaded(model)
    data = data.take(limit) if isinstance(data, DataSet) else load_data(data, at_most=limit)
    known = data.draw(None, seed).utterances
    known = tuple(utterance for utterance in known if utterance.text)
    transcription = transcribe_data(
        model, DataSet(data.name, known), language=language, confidence=True, progress=progress
    )
    halves = assign_folds([utterance.speaker for utterance in known])
    return fit_to_transcripts(model, transcription.transcripts, halves)


def transcribe(
    model: str | Path | SpeechModel,
    audio: Sequence[str | Path],
    *,
    confidence: bool = False,
    language: str | None = None,
    progress: Progress = silent,
) -> tuple[Transcript, ...]:
    """The words spoken in sound files, folders of them and data sets, in their order.

    `confidence`: with the log-probability of each token (see `evaluate.confidence.words_of`).
    """
    utterances: list[Utterance] = []
    for source in audio:
        if Path(source).is_dir() or Path(source).suffix == ".jsonl":
            utterances += load_data(source)
        else:
            utterances.append(Utterance(id=str(source), audio=Path(source)))
    data = DataSet("files", tuple(utterances))
    return transcribe_data(
        _loaded(model), data, language=language, confidence=confidence, progress=progress
    ).transcripts


def _loaded(model: str | Path | SpeechModel) -> SpeechModel:
    return model if isinstance(model, SpeechModel) else load(model)


def _calibration_data(source: str | Path, utterances: int | None) -> DataSet:
    """All there is in a folder; of a data set on the Hub, some times as many as are drawn, not the whole corpus."""
    if str(source).startswith("hf:") and utterances is not None:
        return load_data(source, at_most=HUB_SURPLUS * utterances)
    return load_data(source)


def _stored_bytes(model: SpeechModel) -> int:
    files = list(Path(model.source).expanduser().glob("*.safetensors"))
    if files:
        return sum(file.stat().st_size for file in files)
    return sum(2 * parameter.numel() for parameter in model.network.parameters())
