"""Options that several commands share, and what they have in common: threads, JSON, names of backends."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sottovoce.backends.registry import BACKENDS, backend_named, exporting_backends
from sottovoce.cli.sections import SectionedCommand
from sottovoce.errors import RecipeError, SottovoceError
from sottovoce.system.counting import counted

if TYPE_CHECKING:
    from sottovoce.evaluation.transcribe import Transcription
    from sottovoce.system.devices import Placement

Option = Callable[[Any], Any]
FAILED, NOT_GOOD_ENOUGH = 1, 3  # exit codes; 2 is click's, for wrong usage


@contextmanager
def usage_errors(kind: type[SottovoceError] = RecipeError) -> Iterator[None]:
    """Turn what is wrong with the options alone, whatever model or speech they are for, into wrong usage: exit code 2."""
    try:
        yield
    except kind as exc:
        raise click.UsageError(str(exc)) from exc


def first_given(*names: str) -> str | None:
    """Return the first of these parameters of the running command that stands on the command line, as it is written there; or None."""
    ctx = click.get_current_context()
    given = [name for name in names if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    return next((param.opts[0] for param in ctx.command.params if param.name in given[:1]), None)


def refuse_without(needed: str, *names: str) -> None:
    """Raise `click.UsageError` for the first of these options that is given: without `needed` nothing would come of it."""
    if option := first_given(*names):
        raise click.UsageError(f"{option} has no effect without {needed}; add that, or leave {option} out")


def refuse_with(given: str, *names: str) -> None:
    """Raise `click.UsageError` for the first of these options that is given: with `given` nothing would come of it."""
    if option := first_given(*names):
        raise click.UsageError(f"{option} has no effect with {given}; leave one of them out")


def check_context(context: str) -> None:
    """Raise `click.UsageError` for what is no encoder context of any model."""
    from sottovoce.evaluation.context import as_context

    with usage_errors():
        as_context(context)


class BackendName(click.ParamType):  # type: ignore[type-arg]
    """The name of a backend, or one of its other spellings."""

    name = "backend"

    def __init__(self, known: Iterable[str]) -> None:
        self.known = tuple(known)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            name = backend_named(str(value)).name
        except RecipeError:
            name = ""
        if name not in self.known:
            self.fail(f"{value!r} is not one of {', '.join(self.known)}", param, ctx)
        return name

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        del param, ctx
        return f"[{'|'.join(self.known)}]"


class OutputFolder(click.ParamType):  # type: ignore[type-arg]
    """The name of a folder to write, which may not be empty: that would be the folder one is in."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value).strip():
            self.fail("the name is empty; give the name of a folder", param, ctx)
        return Path(value)


OUTPUT_FOLDER = OutputFolder()
ANY_BACKEND = BackendName(BACKENDS)
EXPORTING_BACKEND = BackendName(exporting_backends())

runtime_option = click.option(
    "--runtime",
    type=ANY_BACKEND,
    help="Runtime that transcribes. An exported file always runs in its own; other models are exported first (default: torch).",
)
save_option = click.option(
    "--save",
    type=click.Path(path_type=Path),
    help="Write the transcripts to this file (JSON lines). A stopped run continues from it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
language_option = click.option(
    "--language", help="Language of recordings without one of their own, or auto to detect it for each recording (default: en)."
)
transcript_language_option = click.option("--language", help="Language of transcripts that name none (default: en).")
fallback_option = click.option(
    "--fallback",
    is_flag=True,
    help="Decode improbable or repeating text again at higher temperatures, like openai/whisper (default: greedy; PyTorch only).",
)
SEED = click.IntRange(0)
fallback_seed_option = click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the sampling of --fallback.")
tokens_option = click.option(
    "--tokens-per-second",
    type=click.FloatRange(0, 1000, min_open=True),
    help="Tokens for a second of audio after which a transcript is cut (Moonshine, in torch and onnxruntime; default: no such limit).",
)
context_option = click.option(
    "--context",
    default="auto",
    show_default=True,
    metavar="auto|full|N|+N",
    help="Encoder positions (50 a second) that a recording gets: as the folder was tuned, the whole window, N, or its length and N more.",
)


def tuned_context_option(about: str) -> Option:
    """Return the option for which contexts of the encoder a model is tuned for; `about`: its help."""
    return click.option("--context", type=click.Choice(["full", "short"]), default="full", show_default=True, help=about)


threads_option = click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
calibration_weights_option = click.option(
    "--calibration-weights",
    type=click.Choice(["hours", "equal"]),
    default="hours",
    show_default=True,
    help="How several data sets share the utterances: in proportion to their hours of speech, or equally.",
)
augment_option = click.option("--augment", is_flag=True, help="Vary the speech by --seed: shorten, cut and join clips, add a little noise.")
sample_seed_option = click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the sample.")
batch_size_option = click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Utterances per forward pass.")
resume_option = click.option("--resume", is_flag=True, help="Continue a stopped run of the same command.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if sottovoce wrote it.")

_DEVICES = re.compile(r"cpu|cuda(:\d+)?|mps|auto")


def _known_device(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if _DEVICES.fullmatch(value) is None:
        raise click.BadParameter(f"{value!r} is not known; choose cpu, cuda, cuda:N, mps or auto")
    return value


device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    callback=_known_device,
    metavar="[cpu|cuda|cuda:N|mps|auto]",
    help="Where PyTorch computes; auto: a GPU if there is one.",
)
_PLACEMENT_OPTIONS = (
    device_option,
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        show_default=True,
        help="Numbers of the forward passes in PyTorch; sums and solves keep float32 and float64.",
    ),
    click.option("--offload", is_flag=True, help="Keep weights in main memory; they visit the device layer by layer."),
)


def placement_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --device, --dtype and --offload, as its argument `place`: a function that returns the `Placement`."""

    @wraps(command)
    def with_options(device: str, dtype: str, offload: bool, **arguments: Any) -> Any:
        if offload and device == "cpu":
            raise click.UsageError("--offload keeps weights in main memory while another device computes; give that with --device")

        def place() -> Placement:
            from sottovoce.system.devices import find_placement

            return find_placement(device, dtype, offload=offload)

        return command(**arguments, place=place)

    for option in reversed(_PLACEMENT_OPTIONS):
        with_options = option(with_options)
    return with_options


_RAY_ADDRESS = re.compile(r"auto|local|ray://.+|[^/\s]+:\d{1,5}")


class WithRay(SectionedCommand):
    """A command with `ray_option`. What follows `--ray` is its address only if it looks like one: it may be a model or a recording."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)
        for i, word in enumerate(words):
            if word == "--ray" and not (i + 1 < len(words) and _RAY_ADDRESS.fullmatch(words[i + 1])):
                words[i] = "--ray=local"
        return super().parse_args(ctx, words)


ray_option = click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Let the workers of a Ray cluster do it: the one at ADDRESS, or one on this machine (extra ray).",
)


def set_threads(threads: int | None) -> None:
    """Keep the libraries quiet, and set the number of threads if one is given."""
    from sottovoce.cli.console import quiet_libraries

    quiet_libraries()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def print_json(content: Any) -> None:
    """Print plain data as JSON; numbers that JSON does not have (NaN, infinite) become null."""
    click.echo(json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def finish(unusable: Collection[str], used: int, done: str, *, passed: bool = True) -> None:
    """Name why recordings could not be used, beside so many that were, and say what is `done` with those.

    Exit with 3 if what was measured is not good enough, with 1 for such recordings.
    """
    for reason in unusable:
        click.echo(f"Error: {reason}", err=True)
    if unusable:
        given = len(unusable) + used
        many = f"{len(unusable)} of {counted(given, 'recording')}" if given > 1 else "the only recording"
        click.echo(f"{many} could not be used; {done}", err=True)
    if not passed:
        raise SystemExit(NOT_GOOD_ENOUGH)
    if unusable:
        raise SystemExit(FAILED)


def finish_transcription(transcription: Transcription, *, passed: bool = True) -> None:
    """End a command that transcribed, as `finish` does."""
    used = len(transcription.transcripts)
    done = "the others were transcribed" if used else "nothing was transcribed"
    finish(transcription.unusable.values(), used, done, passed=passed)
