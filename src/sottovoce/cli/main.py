"""The command `sottovoce`: parse, call one public function, print.

Results go to standard output, everything else to standard error. Exit code 0: done; 1: refused or failed, with one sentence
why; 2: wrong usage, which the command line alone tells; 3: measured, and not good enough (a gate that fails, a limit that is
exceeded); 130 and 143: stopped by Ctrl-C and SIGTERM. Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import re
import signal
import sys
import threading
from typing import Any, NoReturn

import click

from sottovoce import __version__
from sottovoce.cli.bench import bench, demo
from sottovoce.cli.certify import certify
from sottovoce.cli.evaluate import confidence, evaluate, score, transcribe
from sottovoce.cli.fit import fit
from sottovoce.cli.folder import inspect, report, verify
from sottovoce.cli.formats import formats
from sottovoce.cli.push import push
from sottovoce.cli.quantize import export, quantize
from sottovoce.cli.tune import tune
from sottovoce.errors import AnotherRankError, SottovoceError, first_line
from sottovoce.system.notices import notices_on_standard_error
from sottovoce.system.torchrun import is_leading

OUT_OF_MEMORY, CPU_ALLOCATOR = "OutOfMemoryError", "DefaultCPUAllocator"  # of torch: a class, and what a RuntimeError says
LESS_MEMORY = "give smaller batches or a smaller model"
EMPTY_OPTION = re.compile(r"--[a-z-]+=")
COMMANDS = (  # in the order in which they are needed, which is that of the help
    demo,
    quantize,
    evaluate,
    transcribe,
    export,
    inspect,
    verify,
    report,
    score,
    confidence,
    certify,
    fit,
    tune,
    formats,
    bench,
    push,
)


class _Terminated(BaseException):
    """The process was asked to end (SIGTERM): like Ctrl-C, but for exit code and name."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _what_is_kept(ctx: click.Context) -> str:
    """Say what a stop leaves behind of the command that is running."""
    command = main.commands.get(ctx.invoked_subcommand or "")
    if command is bench:
        return "finished cells are kept, and the same command continues"
    if command is demo:
        return "what it had finished is kept in its folder, and the same command uses the speech again"
    if command is push:
        return "what has arrived is kept, and the same command continues"
    if command is not None and any(parameter.name == "resume" for parameter in command.params):
        kept = "the steps up to the last look" if command is tune else "finished layers"
        return f"{kept} are kept, and the same command with --resume continues"
    if command is not None and any(parameter.name == "save" for parameter in command.params):
        return "transcripts are kept where --save was given, and the same command continues"
    return "nothing was written"


class _Group(click.Group):
    """Turns the package's errors into one sentence and exit code 1; lists commands as they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for word in args:
            if not word or EMPTY_OPTION.fullmatch(word):  # as a path it would stand for the current folder
                name = f"the value of {word[:-1]}" if word else "a word of the command"
                raise click.UsageError(f"{name} is empty, as of a shell variable that is not set; give it, or leave it out", ctx)
        return super().parse_args(ctx, args)

    @staticmethod
    def _fail(sentence: str) -> NoReturn:
        click.echo(f"Error: {sentence}", err=True)  # as click begins
        sys.exit(1)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._fail(f"the result cannot be written ({exc.strerror}); make room, or send it elsewhere")

    def invoke(self, ctx: click.Context) -> Any:
        in_main_thread = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
        try:
            with notices_on_standard_error():
                return super().invoke(ctx)
        except AnotherRankError:
            sys.exit(1)  # the process that ended first says why
        except SottovoceError as exc:
            self._fail(str(exc))
        except MemoryError as exc:
            self._fail(f"memory is exhausted ({first_line(exc)}); {LESS_MEMORY}")
        except RuntimeError as exc:
            if CPU_ALLOCATOR in str(exc):
                self._fail(f"memory is exhausted ({first_line(exc)}); {LESS_MEMORY}")
            if type(exc).__name__ != OUT_OF_MEMORY:  # torch's, which is not imported for this
                raise
            self._fail(f"the memory of the device is exhausted ({first_line(exc)}); give --offload, smaller batches, or --device cpu")
        except (KeyboardInterrupt, _Terminated) as exc:
            if is_leading():  # one of the processes of torchrun speaks for all
                click.echo(f"stopped; {_what_is_kept(ctx)}", err=True)
            sys.exit(128 + (signal.SIGINT if isinstance(exc, KeyboardInterrupt) else signal.SIGTERM))
        finally:
            if in_main_thread:
                signal.signal(signal.SIGTERM, before)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sottovoce")
def main() -> None:
    """Quantize speech recognizers to low bits, and measure the effect on the words.

    \b
    sottovoce quantize openai/whisper-tiny.en tiny-4bit --calibration recordings/
    sottovoce evaluate tiny-4bit test.jsonl --against openai/whisper-tiny.en

    MODEL: a Hub id such as openai/whisper-base, a folder of transformers, faster-whisper or sottovoce, an exported file, or
    bundled:tiny.en, bundled:base, bundled:moonshine-base.

    DATA: a folder of recordings, a manifest (lines with "audio" and, where known, "text"), a LibriSpeech, TED-LIUM or SPGISpeech
    directory, or a data set of the Hub, hf:NAME:CONFIG:SPLIT.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 a gate or a limit failed.
    """


for _command in COMMANDS:
    main.add_command(_command)
