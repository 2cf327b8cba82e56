"""The main job: recordings, a plan and a recipe in, a quantized recognizer out."""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from sottovoce.core.qtensor import QuantizedTensor
from sottovoce.data.augment import Augmentation
from sottovoce.data.dataset import Share
from sottovoce.data.folds import one_speaker
from sottovoce.errors import CalibrationError, MachineError
from sottovoce.models.batching import Batch
from sottovoce.models.speech_model import SpeechModel
from sottovoce.quantization.awq import quantize_with_awq
from sottovoce.quantization.batches import PositionWeights, make_batches, plan_pieces
from sottovoce.quantization.calibration_set import CalibrationSpeech
from sottovoce.quantization.importance import round_with_importance
from sottovoce.quantization.install import round_all_layers, round_floats_to_float16
from sottovoce.quantization.layer import LayerReport
from sottovoce.quantization.methods import AWQ, GPTQ, QEP, ImportanceRTN
from sottovoce.quantization.plan import Plan
from sottovoce.quantization.recipe import Recipe
from sottovoce.quantization.run_state import RunState
from sottovoce.quantization.sequential import DIAGNOSTIC_WINDOWS, LayerObserver, quantize_sequentially
from sottovoce.quantization.spill import Spill
from sottovoce.quantization.windows import make_windows
from sottovoce.system.counting import counted
from sottovoce.system.devices import brought_home as network_brought_home
from sottovoce.system.devices import share_weights
from sottovoce.system.memory import keep_freed_memory
from sottovoce.system.notices import notice
from sottovoce.system.progress import Progress, silent
from sottovoce.system.ranks import ALONE, Ranks


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall-clock seconds: transcribing the calibration speech, and the forward passes with all solving."""

    labels_s: float
    solving_s: float


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """The calibration speech of a result, for its manifest."""

    seed: int  # by which utterances were sampled
    utterances: tuple[str, ...]
    seconds: float
    cut_at_silence: tuple[str, ...]  # recordings longer than one forward pass takes
    left_out: dict[str, str] = field(default_factory=dict)  # recordings that could not be used, each with the reason
    sources: tuple[Share, ...] = ()  # what came from each data set, if there are several
    augmentation: Augmentation | None = None  # how the recordings were varied
    recordings: tuple[str, ...] = ()  # hashes of the recordings (see `data.audio.recording_hash`); none in older folders
    speakers: tuple[str, ...] = ()  # those that are known, sorted
    one_speaker: bool = False  # then settings were chosen on other recordings of the same speaker

    @property
    def amount(self) -> str:
        """Say how much speech it is: recordings, and pieces where long ones were cut or short ones joined."""
        count, pieces = len(self.recordings) or len(self.utterances), len(self.utterances)
        return f"{counted(count, 'recording')}{f' in {pieces} pieces' if pieces != count else ''}, {self.seconds:.0f} s"


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedModel:
    """The result: `model` computes with dequantized weights; `weights` holds the codes by layer name.

    `reports`: diagnostics in the order the layers were finished. `calibration`: None for RTN.
    """

    model: SpeechModel
    weights: dict[str, QuantizedTensor]
    reports: tuple[LayerReport, ...]
    plan: Plan
    recipe: Recipe
    calibration: CalibrationRecord | None
    timing: Timing


@torch.no_grad()
def quantize_model(
    model: SpeechModel,
    plan: Plan,
    recipe: Recipe,
    speech: CalibrationSpeech | None = None,
    *,
    batch_size: int = 8,
    seed: int = 0,
    state: RunState | None = None,
    ranks: Ranks = ALONE,
    spill: Path | None = None,
    progress: Progress = silent,
    on_layer: LayerObserver | None = None,
) -> QuantizedModel:
    """Quantize `model` in memory as `plan` says, by the method of `recipe`; `model` itself stays as it is.

    `speech` is needed by every method but RTN; `seed` is what it was sampled by, for the record and for draws. `state`: what a stopped run
    of the same inputs has finished; it is given what this run finishes (by the methods that go layer by layer; the others do all layers at
    once). `ranks`: processes that share the utterances; all of them return the same codes, and rank 0's `state` counts.
    `spill`: a folder for the activations of paused passes, which then take no memory.
    `on_layer`: is shown every layer that these methods finish. Raises `CalibrationError` if a planned layer is not reached
    exactly once or its inputs are not finite.
    """
    method = recipe.method
    calibrates = method.n_networks > 0
    if calibrates and speech is None:
        raise CalibrationError(f"{method.title} calibrates on speech, and none was given")
    batches, few = list[Batch](), list[Batch]()
    if calibrates and speech is not None:
        windows = make_windows(model, speech, joined=recipe.joined)
        if one_speaker(speech.speakers) and ranks.leads:
            notice("all calibration speech is by one speaker: settings are chosen on other recordings of the same speaker")
        positions = PositionWeights(padding=recipe.padding_weight, subsampling=recipe.frame_subsampling)
        make = partial(make_batches, model, batch_size=batch_size, positions=positions)
        groups = plan_pieces(model, windows, batch_size)[-1].group + 1
        if groups < ranks.size:
            raise MachineError(
                f"{len(speech.ids)} utterances make {len(windows)} windows in {groups} groups, for {ranks.size} processes; start at most "
                f"{groups}, or give more speech"
            )
        batches = make(windows, wanted=lambda piece: piece.group % ranks.size == ranks.rank)
        if isinstance(method, QEP) and method.strength == "diagnostic" and ranks.leads:
            few = make(windows.first(DIAGNOSTIC_WINDOWS))
    started = time.perf_counter()
    if isinstance(method, GPTQ):
        with keep_freed_memory():
            network, layers = quantize_sequentially(
                model,
                plan,
                method,
                batches,
                head_embedding_weight=recipe.head_embedding_weight,
                seed=seed,
                state=state or RunState(),
                ranks=ranks,
                few=few,
                spill=None if spill is None else partial(Spill, spill),
                progress=progress,
                on_layer=on_layer,
            )
    elif isinstance(method, ImportanceRTN):
        with keep_freed_memory():
            network, layers = round_with_importance(model, plan, batches, ranks, progress)
    elif isinstance(method, AWQ):
        with keep_freed_memory():
            network, layers = quantize_with_awq(model, plan, batches, ranks, progress)
    else:
        network = share_weights(model.network)
        layers = round_all_layers(model, network, plan)
    round_floats_to_float16(network, plan)
    return QuantizedModel(
        model=model.with_network(network),
        weights={name: layer.weight for name, layer in layers.items()},
        reports=tuple(layer.report for layer in layers.values()),
        plan=plan,
        recipe=recipe,
        calibration=calibration_record(speech, seed) if calibrates and speech is not None else None,
        timing=Timing(labels_s=speech.label_time_s if speech else 0.0, solving_s=time.perf_counter() - started),
    )


def brought_home(result: QuantizedModel, original: SpeechModel) -> QuantizedModel:
    """Return `result` in float32 on the CPU, whatever device it was made on; `original`: the model as it was loaded."""
    if result.model.placement.is_plain:
        return result
    return replace(result, model=original.with_network(network_brought_home(result.model.network, original.network)))


def calibration_record(speech: CalibrationSpeech, seed: int) -> CalibrationRecord:
    """Return what the manifest keeps of `speech`, sampled by `seed`."""
    return CalibrationRecord(
        seed=seed,
        utterances=speech.ids,
        seconds=round(speech.seconds, 3),
        cut_at_silence=speech.cut,
        left_out=dict(speech.left_out),
        sources=speech.shares,
        augmentation=speech.augmentation,
        recordings=speech.hashes,
        speakers=speech.named_speakers,
        one_speaker=one_speaker(speech.speakers),
    )
