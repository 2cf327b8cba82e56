"""The command `sottovoce`: parse, call one public function, print.

Results go to standard output, everything else to standard error. Exit code 0: done; 1: refused or failed, with one sentence
why; 2: wrong usage. Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sottovoce import __version__
from sottovoce.errors import SottovoceError

if TYPE_CHECKING:
    from sottovoce.evaluation.transcribe import Transcription
    from sottovoce.evaluation.wer import Score
    from sottovoce.quantization.recipe import Recipe

METHOD_NAMES = ("fade", "fade-diagnostic", "qep", "gptq", "awq", "rtn")
WIDTHS = ("2", "3", "4", "8")
TARGET_NAMES = ("hf", "onnx", "gguf", "ggml")
RUNTIMES = ("torch", "onnx", "gguf", "ggml")
HELD_OUT_OR_NUMBER = "NUMBER|held-out"


class _Terminated(BaseException):
    """The process was asked to end (SIGTERM): like Ctrl-C, but for exit code and name."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _keeps(ctx: click.Context) -> bool:
    """Whether the command that is running leaves something to go on with."""
    command = main.commands.get(ctx.invoked_subcommand or "")
    return command is not None and any(parameter.name == "resume" for parameter in command.params)


class _Command(click.Group):
    """Turns the package's errors into one sentence and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        here = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, _terminate) if here else None
        try:
            return super().invoke(ctx)
        except SottovoceError as exc:
            click.echo(f"error: {exc}", err=True)
            sys.exit(1)
        except (KeyboardInterrupt, _Terminated) as exc:
            kept = "what is done is kept, the same command with --resume goes on" if _keeps(ctx) else "nothing was written"
            click.echo(f"stopped; {kept}", err=True)
            sys.exit(128 + (signal.SIGINT if isinstance(exc, KeyboardInterrupt) else signal.SIGTERM))
        finally:
            if here:
                signal.signal(signal.SIGTERM, before)


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sottovoce")
def main() -> None:
    """Low-bit speech recognition that keeps its words.

    MODEL is a Hub id, a transformers or faster-whisper folder, a folder written by sottovoce, or bundled:tiny.en /
    bundled:base / bundled:moonshine-micro.
    DATA is a folder of sound files, a tree of LibriSpeech, TED-LIUM or SPGISpeech, a manifest (JSON lines with "audio" and, where
    known, "text"), or a data set on the Hub, hf:NAME:CONFIG:SPLIT.
    """


_runtime = click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    help="What runs MODEL: a .gguf or .bin file or an ONNX folder runs as what it is; other models are exported first.",
)
_save = click.option(
    "--save",
    type=click.Path(path_type=Path),
    help="Write the transcripts to this file (JSON lines); what a stopped run had made is not made again.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_language = click.option("--language", help="Language code for multilingual models, or auto: found out for each recording (default: en).")
_threads = click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")


@main.command()
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--calibration",
    metavar="DATA",
    help="Speech to calibrate on; no transcripts needed. Every method but rtn wants it.",
)
@click.option("--bits", type=click.Choice(WIDTHS), default="4", show_default=True, help="Bits per weight.")
@click.option("--method", type=click.Choice(METHOD_NAMES), default="fade", show_default=True, help="How the codes are found.")
@click.option(
    "--target",
    type=click.Choice(TARGET_NAMES),
    default="hf",
    show_default=True,
    help="Runtime whose grid the weights are rounded on: transformers and vLLM, ONNX Runtime, transcribe.cpp, whisper.cpp.",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128", "row"]),
    default="32",
    show_default=True,
    help="Weights that share a scale.",
)
@click.option(
    "--symmetric/--asymmetric",
    default=None,
    help="Grid without or with zero points (default: symmetric for gguf and ggml).",
)
@click.option(
    "--scale",
    type=click.Choice(["search", "minmax"]),
    default="search",
    show_default=True,
    help="How scales are found.",
)
@click.option(
    "--head-bits",
    type=click.Choice([*WIDTHS, "16"]),
    help="Bits of the output head and token embedding (default: as --bits; 16 leaves it).",
)
@click.option(
    "--encoder-bits",
    type=click.Choice([*WIDTHS, "16"]),
    help="Bits of the encoder (default: as --bits; 8 is the fastest in ONNX Runtime; 16 leaves it).",
)
@click.option(
    "--rule",
    "rules",
    nargs=2,
    multiple=True,
    metavar="REGEX BITS",
    help="Other bits for the layers whose name matches; 16 leaves them. Repeatable.",
)
@click.option("--strength", help="Strength of error correction: a number, cross-fit or diagnostic.", metavar="NUMBER|RULE")
@click.option("--ridge", help="Ridge of the correction, in mean diagonals of the Hessian.", metavar=HELD_OUT_OR_NUMBER)
@click.option("--damping", help="Damping of the Hessian, in its mean diagonals.", metavar=HELD_OUT_OR_NUMBER)
@click.option("--order", type=click.Choice(["activation", "original"]), help="Order in which columns are rounded.")
@click.option("--absorb-bias/--keep-bias", default=None, help="Put the mean output error into the bias.")
@click.option(
    "--correct-stream/--correct-layer", default=None, help="Correct for what the residual stream lacks, or for a layer's own inputs alone."
)
@click.option(
    "--padding-weight",
    type=float,
    default=0.0,
    show_default=True,
    help="Weight of frames beyond the end of the audio, 0 to 1.",
)
@click.option(
    "--frame-stride",
    type=int,
    default=3,
    show_default=True,
    help="Count every n-th audio frame; 1 is slower and slightly better.",
)
@click.option(
    "--utterances",
    type=click.IntRange(2),
    default=128,
    show_default=True,
    help="Utterances drawn from the calibration data.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Utterances per forward pass.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if sottovoce wrote it.")
@click.option("--resume", is_flag=True, help="Go on where the same command was stopped.")
@_language
@_threads
@_as_json
def quantize(model: str, out: Path, **options: Any) -> None:
    """Quantize MODEL and write a folder OUT that transformers loads.

    \b
    sottovoce quantize openai/whisper-tiny.en tiny-4bit --calibration recordings/
    """
    from sottovoce import api
    from sottovoce.cli import display as show

    _set_threads(options["threads"])
    recipe = _recipe(options)
    with show.progress() as progress:
        loaded = api.load(model)
        if not options["as_json"]:
            show.plan(loaded, recipe)
        result = api.quantize(
            loaded,
            out,
            recipe=recipe,
            calibration=options["calibration"],
            utterances=options["utterances"],
            seed=options["seed"],
            batch_size=options["batch_size"],
            language=options["language"],
            overwrite=options["overwrite"],
            resume=options["resume"],
            target=options["target"],
            progress=progress,
        )
    if options["as_json"]:
        _print_json(show.quantized_as_dict(result, out))
    else:
        show.quantized(result, out, options["target"])


_gate = click.option("--gate", is_flag=True, help="Exit with 1 if failures are added to those of the reference (--against).")
_tolerance = click.option(
    "--tolerance",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Added failures of each kind that the gate lets pass: loops, empty outputs, words on silence, truncations.",
)


@main.command()
@click.argument("model")
@click.argument("data")
@click.option("--against", metavar="MODEL", help="Model to compare with, utterance by utterance.")
@click.option("--save-reference", type=click.Path(path_type=Path), help="Write the transcripts of --against to this file.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many utterances.")
@_save
@_gate
@_tolerance
@_runtime
@_language
@_threads
@_as_json
def evaluate(
    model: str,
    data: str,
    against: str | None,
    limit: int | None,
    save: Path | None,
    save_reference: Path | None,
    gate: bool,
    tolerance: int,
    runtime: str | None,
    language: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Word error rate of MODEL on DATA.

    \b
    sottovoce evaluate tiny-4bit recordings/ --against openai/whisper-tiny.en
    """
    from sottovoce import api
    from sottovoce.cli import display as show

    _gate_needs(gate, against)
    if save_reference is not None and against is None:
        raise click.UsageError("--save-reference needs a reference system: give it with --against")
    _set_threads(threads)
    with show.progress() as progress:
        result = api.evaluate(
            model,
            data,
            against=against,
            limit=limit,
            runtime=runtime,
            language=language,
            save=save,
            save_reference=save_reference,
            progress=progress,
        )
    content = show.evaluation_as_dict(result) if as_json else None
    if not as_json:
        show.evaluation(result)
    _finish(content, result.score, result.reference.score if result.reference else None, gate, tolerance)
    _exit_for_unusable(result.transcription)


@main.command()
@click.argument("transcripts", type=click.Path(path_type=Path))
@click.option("--against", metavar="FILE", type=click.Path(path_type=Path), help="Transcripts of a reference system.")
@_gate
@_tolerance
@_as_json
def score(transcripts: Path, against: Path | None, gate: bool, tolerance: int, as_json: bool) -> None:
    """Score a file of TRANSCRIPTS; no model is needed.

    \b
    sottovoce score tiny-4bit.jsonl --against tiny.jsonl --gate
    """
    from sottovoce import api
    from sottovoce.cli import display as show
    from sottovoce.evaluation.wer import score_to_dict

    _gate_needs(gate, against)
    ours, reference = api.score(transcripts, against=against)
    content = {**score_to_dict(ours), "reference": score_to_dict(reference) if reference else None} if as_json else None
    if not as_json:
        show.scores(ours, reference)
    _finish(content, ours, reference, gate, tolerance)


@main.command()
@click.argument("model")
@click.argument("audio", nargs=-1, required=True)
@_save
@click.option(
    "--confidence",
    type=click.Choice(["raw", "temperature", "platt"]),
    help="With --json: every word's confidence, as it is or scaled as fitted by `sottovoce confidence --store`.",
)
@_runtime
@_language
@_threads
@_as_json
def transcribe(
    model: str,
    audio: tuple[str, ...],
    save: Path | None,
    confidence: str | None,
    runtime: str | None,
    language: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Print the words spoken in sound files, or in folders and manifests of them.

    \b
    sottovoce transcribe tiny-4bit interview.flac
    """
    from sottovoce import api
    from sottovoce.cli import display as show

    if confidence and not as_json:
        raise click.UsageError("--confidence goes with --json")
    _set_threads(threads)
    loaded = api.open_recognizer(model, runtime)
    scaling = show.stored_scaling(model, confidence) if confidence else None
    with show.progress() as progress:
        heard = api.transcribe(loaded, audio, confidence=confidence is not None, language=language, save=save, progress=progress)
    transcripts = heard.transcripts
    if as_json:
        rows = [{"audio": t.id, "text": t.text, "duration_s": round(t.duration_s, 3)} for t in transcripts]
        if scaling is not None:
            rows = [row | {"words": show.words(loaded, t, scaling)} for row, t in zip(rows, transcripts, strict=True)]
        _print_json(rows)
    else:
        for transcript in transcripts:
            click.echo(transcript.text if len(transcripts) == 1 else f"{transcript.id}\t{transcript.text}")
    _exit_for_unusable(heard)


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("format", type=click.Choice(["gguf", "ggml", "onnx"]))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--verify/--no-verify", default=True, show_default=True, help="Run the file and compare its words with PyTorch's.")
@click.option("--speech", metavar="DATA", help="Speech to compare on (default: four English sentences that come along).")
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
@click.option(
    "--activations",
    type=click.Choice(["int8", "float32"]),
    default="int8",
    show_default=True,
    help="onnx only: round inputs of matrix products to 8 bits (fast), or not (slower, words as in PyTorch).",
)
@_language
@_threads
@_as_json
def export(
    out: Path,
    format: str,  # noqa: A002 - the name on the command line
    file: Path,
    verify: bool,
    speech: str | None,
    overwrite: bool,
    activations: str,
    language: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the codes of a quantized folder OUT, bit for bit, as a FILE of another runtime.

    \b
    sottovoce export tiny-4bit gguf tiny-4bit.gguf    transcribe.cpp
    sottovoce export tiny-4bit ggml tiny-4bit.bin     whisper.cpp
    sottovoce export tiny-4bit onnx tiny-4bit-onnx    ONNX Runtime (a folder)
    """
    from sottovoce import api
    from sottovoce.cli import display as show

    _set_threads(threads)
    with show.progress() as progress:
        done = api.export(
            out,
            format,
            file,
            verify=verify,
            speech=speech,
            overwrite=overwrite,
            language=language,
            activations=activations,
            progress=progress,
        )
    if as_json:
        _print_json(show.export_as_dict(done))
    else:
        show.exported(done)


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@_as_json
def inspect(out: Path, as_json: bool) -> None:
    """What is in a quantized folder: bits, sizes, diagnostics of every layer.

    \b
    sottovoce inspect tiny-4bit
    """
    from sottovoce.checkpoint.manifest import read_manifest
    from sottovoce.cli import display as show

    manifest = read_manifest(out)
    if as_json:
        _print_json(manifest)
    else:
        show.folder(manifest, out)


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@_as_json
def verify(out: Path, as_json: bool) -> None:
    """Check a quantized folder again: every file's checksum, and that codes, scales, recipe and description agree.

    \b
    sottovoce verify tiny-4bit
    """
    from sottovoce import api
    from sottovoce.cli import display as show

    _set_threads(None)
    checked = api.verify(out)
    if as_json:
        _print_json(asdict(checked))
    else:
        show.verified(checked, out)


@main.command()
@click.argument("model")
@click.argument("data")
@click.option("--store", is_flag=True, help="Keep the fitted scalings in MODEL (a folder written by sottovoce).")
@click.option("--limit", type=click.IntRange(2), help="Only the first so many utterances.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed by which the speech is halved.")
@_language
@_threads
@_as_json
def confidence(
    model: str,
    data: str,
    store: bool,
    limit: int | None,
    seed: int,
    language: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """How far word confidences of MODEL can be trusted on DATA, and scalings that mend them.

    Fits on one half of DATA and measures on the other. DATA needs texts, and should not be what MODEL was calibrated on.

    \b
    sottovoce confidence tiny-4bit held-out/ --store
    """
    from sottovoce import api
    from sottovoce.checkpoint.manifest import read_manifest, store_confidence
    from sottovoce.cli import display as show

    if store:
        read_manifest(Path(model))  # refused before any work
    _set_threads(threads)
    with show.progress() as progress:
        fitted = api.fit_confidence(model, data, limit=limit, seed=seed, language=language, progress=progress)
    content = show.confidence_as_dict(fitted)
    if store:
        store_confidence(model, content | {"data": data, "seed": seed})
    if as_json:
        _print_json(content)
    else:
        show.confidence(fitted)


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--transcripts", type=click.Path(path_type=Path), help="What the model heard (evaluate --save).")
@click.option("--against", type=click.Path(path_type=Path), help="What the original heard (evaluate --save-reference).")
@click.option("--html", type=click.Path(path_type=Path), help="The page to write (default: OUT.html beside OUT).")
def report(out: Path, transcripts: Path | None, against: Path | None, html: Path | None) -> None:
    """One HTML page about a quantized folder, or about the results of a bench.

    \b
    sottovoce report tiny-4bit --transcripts heard.jsonl --against original.jsonl
    """
    from sottovoce.bench import read_results
    from sottovoce.evaluation.transcripts import read_transcripts
    from sottovoce.report import bench_page, folder_page, write_page

    if against is not None and transcripts is None:
        raise click.UsageError("--against is compared with --transcripts: give both")
    if (out / "cells").is_dir():
        page = bench_page(out.resolve().name, read_results(out))
    else:
        page = folder_page(
            out,
            None if transcripts is None else read_transcripts(transcripts),
            None if against is None else read_transcripts(against),
        )
    whole = out.resolve()
    click.echo(f"wrote {write_page(page, html or whole.with_name(f'{whole.name}.html'))}")


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of results; a stopped bench goes on there.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Where the recipe's data sets lie (default: the recipe's own folder).",
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each process (default: all cores, shared).")
@click.option("--tables-only", is_flag=True, help="Compute nothing; tables and figures of what is there.")
@click.option(
    "--runtime",
    "runtimes",
    type=click.Choice(RUNTIMES),
    multiple=True,
    help="What transcribes (default: as the recipe says, else torch). Repeatable.",
)
def bench(
    recipe: Path,
    out: Path,
    data: Path | None,
    jobs: int,
    threads: int | None,
    tables_only: bool,
    runtimes: tuple[str, ...],
) -> None:
    """Measure models, methods, widths and seeds on data sets, as RECIPE (TOML) says.

    Every cell is computed once and stored; start the command again after a stop. Writes results.md, results.csv and figures.

    \b
    sottovoce bench benchmarks/recipes/tiny.en.toml --data speech/ --out results/
    """
    from sottovoce.bench import as_csv, as_markdown, draw_figures, read_plan, read_results, run_bench, summarize
    from sottovoce.cli import display as show
    from sottovoce.errors import MissingDependencyError

    plan = read_plan(recipe)
    if runtimes:
        plan = replace(plan, runtimes=runtimes)
    failed: tuple[tuple[str, str], ...] = ()
    if not tables_only:
        _set_threads(None)
        with show.progress() as progress:
            outcome = run_bench(plan, out, data_root=data or recipe.parent, jobs=jobs, threads=threads, progress=progress)
        failed = outcome.failed
        click.echo(f"{len(outcome.computed)} cells computed, {len(outcome.found)} found finished", err=True)
    results = read_results(out)
    rows = summarize(results)
    table = as_markdown(rows)
    (out / "results.md").write_text(table, encoding="utf-8")
    (out / "results.csv").write_text(as_csv(rows), encoding="utf-8")
    click.echo(table)
    try:
        for _, file in draw_figures(rows, results, out):
            click.echo(f"wrote {file}", err=True)
    except MissingDependencyError as exc:
        click.echo(f"note: {exc}", err=True)
    for name, error in failed:
        click.echo(f"failed: {name}: {error}", err=True)
    if failed:
        sys.exit(1)


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for speech and models.",
)
@click.option("--bits", type=click.Choice(WIDTHS), default="4", show_default=True, help="Bits per weight.")
@_threads
@_as_json
def demo(out: Path, bits: str, threads: int | None, as_json: bool) -> None:
    """Quantize a bundled Whisper with bundled speech, offline, and show what it did to the words.

    \b
    sottovoce demo
    """
    from sottovoce.cli import display as show
    from sottovoce.demo.run import run_demo

    _set_threads(threads)
    with show.progress() as progress:
        result = run_demo(out, bits=int(bits), progress=progress)
    if as_json:
        _print_json(show.demo_as_dict(result))
    else:
        show.demo(result)


def _gate_needs(gate: bool, against: object) -> None:
    if gate and against is None:
        raise click.UsageError("--gate compares with a reference system: give it with --against")


def _finish(content: dict[str, Any] | None, score: Score, reference: Score | None, gate_asked: bool, tolerance: int) -> None:
    """Print the JSON, if any; with `--gate`, give the verdict and exit by it."""
    from sottovoce.cli import display as show
    from sottovoce.evaluation.gate import gate

    verdict = gate(score, reference, tolerance=tolerance) if gate_asked and reference else None
    if content is not None:
        _print_json(content | ({"gate": show.gate_as_dict(verdict)} if verdict else {}))
    elif verdict:
        show.gate(verdict)
    if verdict and not verdict.open:
        sys.exit(1)


def _exit_for_unusable(heard: Transcription) -> None:
    """Exit with 1 after naming what could not be used, if anything."""
    for reason in heard.unusable.values():
        click.echo(f"error: {reason}", err=True)
    if heard.unusable:
        count = len(heard.unusable)
        click.echo(f"{count} of {count + len(heard.transcripts)} recordings could not be used; the others were transcribed", err=True)
        sys.exit(1)


def _recipe(options: dict[str, Any]) -> Recipe:
    from sottovoce.quantization.methods import method_named
    from sottovoce.quantization.recipe import Recipe, Rule, encoder_rule
    from sottovoce.quantization.target import target_grid

    changes = {
        "strength": _number_or_word(options["strength"], "--strength", ("cross-fit", "diagnostic")),
        "ridge": _number_or_word(options["ridge"], "--ridge", ("held-out",)),
        "damping": _number_or_word(options["damping"], "--damping", ("held-out",)),
        "order": options["order"],
        "absorb_bias": options["absorb_bias"],
        "compensate_residual": options["compensate_residual"],
    }
    rules = [Rule(match=match, bits=_whole_number(bits, "--rule")) for match, bits in options["rules"]]
    if options["encoder_bits"] is not None:
        rules.insert(0, encoder_rule(options["target"], int(options["encoder_bits"])))
    return Recipe(
        method=method_named(options["method"], **{key: value for key, value in changes.items() if value is not None}),
        grid=target_grid(
            options["target"],
            bits=int(options["bits"]),
            group_size=None if options["group_size"] == "row" else int(options["group_size"]),
            symmetric=options["symmetric"],
            scale=options["scale"],
        ),
        head_bits=None if options["head_bits"] is None else int(options["head_bits"]),
        padding_weight=options["padding_weight"],
        frame_subsampling=options["frame_subsampling"],
        rules=tuple(rules),
    )


def _number_or_word(value: str | None, option: str, words: tuple[str, ...]) -> float | str | None:
    if value is None or value in words:
        return value
    try:
        return float(value)
    except ValueError as exc:
        raise click.UsageError(f"{option} {value!r} is neither a number nor {' nor '.join(words)}") from exc


def _whole_number(value: str, option: str) -> int:
    try:
        return int(value)
    except ValueError as exc:
        raise click.UsageError(f"{option}: {value!r} is not a number of bits") from exc


def _set_threads(threads: int | None) -> None:
    from sottovoce.cli.display import quiet_libraries

    quiet_libraries()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
