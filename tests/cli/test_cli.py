"""The command: what it prints, what it refuses, how fast it helps."""

import ast
import errno
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from click.testing import CliRunner
from rich.table import Table

import sottovoce
from sottovoce.cli.console import console
from sottovoce.cli.display_scores import _timing_cells
from sottovoce.cli.fit import METHOD_NAMES as FIT_METHODS
from sottovoce.cli.main import main
from sottovoce.cli.recipe_options import METHOD_NAMES, WIDTHS
from sottovoce.core.affine import BITS
from sottovoce.quantization.methods import GPTQ, METHODS
from tests.conftest import make_tiny

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_choices_are_what_there_is() -> None:
    """They are written out in the command, which must not import what knows them."""
    assert set(METHOD_NAMES) == METHODS.keys()
    assert set(FIT_METHODS) == {name for name, method in METHODS.items() if isinstance(method, GPTQ)}
    assert set(WIDTHS) == {str(bits) for bits in BITS}


def test_quantize_inspect_transcribe_evaluate(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, shown = run("quantize", model_folder, out, "--calibration", speech_folder, "--group-size", 32)
    assert code == 0, shown
    assert "Plan for" in shown
    assert "mean strength" in printed
    code, printed, _ = run("inspect", out, "--json")
    assert code == 0
    manifest = json.loads(printed)
    assert manifest["recipe"]["method"]["strength"] == "cross-fit"
    assert len(manifest["calibration"]["utterances"]) == 12
    keys = {"strength", "vulnerability", "calibration_gain", "reliability", "inherited_error", "added_error"}
    assert all(keys <= row.keys() and row["added_error"] is not None for row in manifest["layers"])
    shown = run("inspect", out)[1]
    assert "all checksums right" in shown
    assert "added error against its worst case" in shown
    code, printed, _ = run("transcribe", out, speech_folder / "u0.wav", "--json")
    assert code == 0
    assert json.loads(printed)[0]["duration_s"] == 0.75
    code, printed, _ = run("evaluate", out, speech_folder, "--against", model_folder, "--json")
    assert code == 0
    scored = json.loads(printed)
    assert scored["utterances"] == 12
    assert scored["interval_percent"][0] <= scored["wer_percent"] <= scored["interval_percent"][1]
    assert scored["reference"]["words"] == scored["words"]
    assert "95 % interval" in run("evaluate", out, speech_folder)[1]


def test_transcripts_are_scored_later_without_a_model(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "heard.jsonl"
    evaluated = json.loads(run("evaluate", model_folder, speech_folder, "--save", saved, "--json")[1])
    code, printed, _ = run("score", saved, "--against", saved, "--json", "--gate")
    scored = json.loads(printed)
    assert code == 0
    assert scored["wer_percent"] == evaluated["wer_percent"]
    assert scored["gate"] == {
        "passed": True,
        "tolerance": 0,
        "added": {"looped": [], "empty": [], "spoken_silence": [], "truncated": []},
    }
    assert run("transcribe", model_folder, speech_folder, "--save", tmp_path / "again.jsonl")[0] == 0
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in (saved, tmp_path / "again.jsonl")]
    assert [row["text"] for row in rows[0]] == [row["text"] for row in rows[1]]


def test_the_gate_closes(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    theirs.write_text(json.dumps({"id": "a", "text": "cats and dogs", "reference": "cats and dogs"}) + "\n")
    ours.write_text(json.dumps({"id": "a", "text": "", "reference": "cats and dogs"}) + "\n")
    code, printed, complaint = run("score", ours, "--against", theirs, "--gate")
    assert code == 3
    assert "100.00 %" in printed
    assert "added, empty (1): a" in complaint
    assert "gate failed" in complaint
    assert run("score", ours, "--against", theirs, "--gate", "--tolerance", 1)[0] == 0
    assert run("score", ours, "--gate")[0] == 2


def test_rules_widths_and_settings_reach_the_recipe(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (
        "--method",
        "gptq",
        "--bits",
        3,
        "--head-bits",
        16,
        "--rule",
        "fc1$",
        8,
        "--damping",
        0.2,
        "--act-order",
    )
    code, printed, shown = run("quantize", model_folder, out, "--calibration", speech_folder, "--group-size", 32, "--json", *arguments)
    assert code == 0, shown
    layers = {row["name"]: row for row in json.loads(printed)["layers"]}
    assert "proj_out" not in layers
    assert layers["model.encoder.layers.0.fc1"]["bits"] == 8
    assert layers["model.encoder.layers.0.fc2"]["bits"] == 3
    assert {row["damping"] for row in layers.values()} == {0.2}


@pytest.mark.parametrize("target", ["onnx", "gguf", "hf"])
def test_the_encoder_may_have_bits_of_its_own(target: str, model_folder: Path, tmp_path: Path) -> None:
    """In ONNX with the grid of its fastest product; rules that are given come after."""
    out = tmp_path / "out"
    arguments = ("--target", target, "--method", "rtn", "--encoder-bits", 8, "--rule", "encoder.*1.fc1$", 4)
    code, printed, shown = run("quantize", model_folder, out, "--json", *arguments)
    assert code == 0, shown
    layers = {
        row["name"]: (row["format"]["bits"], row["format"]["group_size"])
        for row in json.loads(run("inspect", out, "--json")[1])["plan"]["layers"]
    }
    width = None if target == "onnx" else 32
    assert layers["model.encoder.layers.0.fc1"] == (8, width)
    assert layers["model.decoder.layers.0.encoder_attn.q_proj"] == (4, 32)
    assert layers["model.encoder.layers.1.fc1"][0] == 4
    rule = json.loads((out / "sottovoce.json").read_text())["recipe"]["rules"][0]
    assert (rule["group_size"], rule["symmetric"]) == ((None, True) if target == "onnx" else ("same", "same"))
    assert run("verify", out)[0] == 0


def test_refusals(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text('{"model_type": "bert"}')
    broken = tmp_path / "broken"
    broken.mkdir()
    soundfile.write(broken / "a.wav", [0.0] * 16000, 16000)
    data = ("--calibration", speech_folder, "--group-size", 32)
    cases = [
        (("quantize", tmp_path / "absent", out, *data), "no such file or folder"),
        (("quantize", "some/model/path", out, *data), "no such file or folder"),
        (("quantize", empty, out, *data), "no config.json"),
        (("quantize", bert, out, *data), "not an encoder-decoder speech recognizer"),
        (("quantize", "bundled:huge", out, *data), "bundled:huge is not known"),
        (("quantize", model_folder, out, "--calibration", speech_folder, "--group-size", "128"), "groups of 128 do not divide"),
        (("quantize", model_folder, out, "--calibration", empty, "--group-size", 32), "holds no utterances"),
        (("quantize", model_folder, out, "--calibration", broken, "--group-size", 32), "is silent"),
        (("quantize", model_folder, out, *data, "--rule", "no_such", 4), "covers no layer"),
        (("quantize", model_folder, empty / "..", *data), "exists already"),
        (("transcribe", model_folder, tmp_path / "absent.wav"), "no such file"),
        (("inspect", model_folder), "not written by sottovoce"),
        (("evaluate", model_folder, broken), "no text is known of its recordings"),
    ]
    for arguments, words in cases:
        code, printed, shown = run(*arguments)
        assert code == 1, (arguments, shown)
        assert words in shown.replace("\n", " "), (arguments, shown)
        assert not printed
        assert not out.exists()


RTN = ("quantize", "MODEL", "OUT", "--method", "rtn")
QUANTIZE = ("quantize", "MODEL", "OUT", "--calibration", "SPEECH")
FIT = ("fit", "MODEL", "OUT", "--calibration", "SPEECH")
CERTIFY = ("certify", "Q", "--against", "MODEL", "--audio", "SPEECH")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quantize",), "Missing argument"),
        ((*RTN, "--bits", 7), "'7' is not one of"),
        (("quantize", "MODEL", "OUT"), "FADE calibrates on speech, and none was given: give a folder or manifest (--calibration)"),
        ((*RTN, "--tune"), "tuning listens to speech"),
        ((*QUANTIZE, "--damping", "lots"), "neither a number"),
        ((*QUANTIZE, "--damping", 0), "out of range"),
        ((*QUANTIZE, "--curvature", 2), "not in the range"),
        ((*QUANTIZE, "--joined", 2), "not in the range"),
        ((*QUANTIZE, "--padding-weight", 2), "not in the range"),
        ((*QUANTIZE, "--format", "q99"), "q99"),
        ((*QUANTIZE, "--max-memory", "lots"), "'lots' is not a size"),
        ((*RTN, "--max-memory", "8GiB"), "a limit of memory is for methods that go layer by layer"),
        ((*QUANTIZE, "--context", "full"), "--context has no effect without --tune"),
        ((*QUANTIZE, "--method", "rtn"), "--calibration has no effect with --method rtn, which uses no speech"),
        (("quantize", "MODEL", "OUT", "--method", "rtn", "--joined", 1), "--joined has no effect with --method rtn, which uses no speech"),
        (("quantize", "MODEL", "OUT", "--calibration", ""), "a word of the command is empty"),
        (("inspect", ""), "a word of the command is empty"),
        (("push", "", "me/tiny"), "a word of the command is empty"),
        (("evaluate", "MODEL", "SPEECH", "--save="), "the value of --save is empty"),
        (("bench", "R.toml", "--out", "OUT", "--tables-only", "--jobs", 3), "--jobs has no effect with --tables-only"),
        (("bench", "R.toml", "--out", "OUT", "--tables-only", "--ray"), "--ray has no effect with --tables-only"),
        ((*QUANTIZE, "--device", "tpu"), "choose cpu, cuda, cuda:N, mps or auto"),
        ((*QUANTIZE, "--offload"), "give that with --device"),
        ((*QUANTIZE, "--seed", -1), "not in the range"),
        (("quantize", "MODEL", "", "--method", "rtn"), "a word of the command is empty"),
        (("fit", "MODEL", "", "--calibration", "SPEECH", "--max-kl", 1), "a word of the command is empty"),
        (("tune", "Q", "", "--calibration", "SPEECH"), "a word of the command is empty"),
        (("tune", "Q", "OUT", "--calibration", "SPEECH", "--rate", 1), "out of range"),
        (FIT, "either a size, a bound"),
        ((*FIT, "--max-size", "30 parsecs"), "is not a size"),
        ((*FIT, "--max-kl", -1), "of -1.0 is not possible"),
        ((*FIT, "--max-wer-increase", "nan"), "of nan is not possible"),
        ((*CERTIFY, "--confidence", 2), "out of range"),
        ((*CERTIFY, "--max-changed", "nan"), "a limit is nan"),
        ((*CERTIFY, "--seed", -1), "not in the range"),
        ((*CERTIFY, "--context", "some"), "is no context"),
        (("evaluate", "MODEL", "SPEECH", "--context", "some"), "is no context"),
        (("evaluate", "MODEL", "SPEECH", "--tolerance", 0), "--tolerance has no effect without --gate"),
        (("evaluate", "MODEL", "SPEECH", "--seed", 0), "--seed has no effect without --fallback"),
        (("score", "t.jsonl", "--tolerance", 1), "--tolerance has no effect without --gate"),
        (("transcribe", "MODEL", "a.wav", "--context", "some"), "is no context"),
        (("transcribe", "MODEL", "a.wav", "--seed", 1), "--seed has no effect without --fallback"),
        (("inspect", "Q", "--utterances", 16), "--utterances has no effect without --errors"),
        (("inspect", "Q", "--language", "de"), "--language has no effect without --errors"),
        (("inspect", "Q", "--threads", 2), "--threads has no effect without --errors"),
        (("inspect", "Q", "--alone"), "--alone has no effect without --errors"),
        (("export", "Q", "onnxruntime", "OUT", "--no-verify", "--speech", "SPEECH"), "--speech has no effect without --verify"),
        (("export", "Q", "onnxruntime", "OUT", "--no-verify", "--language", "de"), "--language has no effect without --verify"),
        (("push", "Q", "a/b/c"), "is no name of a repository"),
    ],
)
def test_wrong_usage_is_told_by_the_command_line_alone(words: tuple[object, ...], said: str) -> None:
    """There is no MODEL and no SPEECH here: exit code 2 comes before either is looked for."""
    code, printed, shown = run(*words)
    assert (code, printed) == (2, "")
    assert said in " ".join(shown.split())


def test_nan_weights_are_named(tmp_path: Path) -> None:
    model = make_tiny()
    model.network.model.encoder.layers[0].fc1.weight[0, 0] = float("nan")
    model.network.save_pretrained(tmp_path / "nan")
    model.processor.save_pretrained(tmp_path / "nan")
    code, _, shown = run("transcribe", tmp_path / "nan", "x.wav")
    assert code == 1
    assert "'model.encoder.layers.0.fc1.weight' holds NaN" in shown


def test_help_needs_no_torch_and_is_fast() -> None:
    script = (
        "import sys; sys.argv = ['sottovoce', '--help']\n"
        "from sottovoce.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert time.perf_counter() - started < 5  # generous: this guards against importing torch, benchmarks measure the time


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_and_an_example_in_it(command: str) -> None:
    code, printed, _ = run(command, "--help")
    assert code == 0
    assert f"sottovoce {command}" in printed


def test_public_names() -> None:
    assert set(main.commands) == {
        "quantize",
        "evaluate",
        "score",
        "transcribe",
        "inspect",
        "bench",
        "report",
        "confidence",
        "certify",
        "demo",
        "export",
        "push",
        "formats",
        "verify",
        "fit",
        "tune",
    }
    assert set(sottovoce.__all__) == {
        "AWQ", "Affine", "Augmentation", "BACKENDS", "Backend", "BenchOutcome", "Certificate", "Choice", "ConfidenceRecord",
        "ConfidenceScaling", "Context", "DataSet", "ErrorStatistics",
        "Evaluation", "Export", "FADE", "Fallback", "FitRecord", "FitResult", "FittedConfidence",
        "GPTQ", "LayerReport", "METHODS", "Manifest",
        "NumberFormat", "Placement", "Plan", "PlannedLayer", "Push",
            "QEP", "QuantizedModel", "QuantizedTensor", "RTN", "Recipe", "Recognizer", "Rule",
        "Score", "ShortContext",
        "SottovoceError", "SpeechModel", "Transcript", "Transcription",
        "TuneRecord", "TuneResult", "TuneSettings", "Utterance", "WordConfidence", "__version__",
        "certify", "choose_smallest", "evaluate", "export", "store_certificate",
        "find_placement", "fit", "fit_confidence", "format_named", "inspect", "inspect_errors",
        "load", "load_data", "make_plan", "method_named", "open_recognizer", "push",
        "quantize", "read_plan",
        "run_bench", "score", "store_confidence", "target_named", "transcribe", "tune", "verify", "word_confidences", "write_plan",
        "write_report",
    }  # fmt: skip
    for module in pkgutil.walk_packages(sottovoce.__path__, "sottovoce."):
        importlib.import_module(module.name)  # which must not put itself in a public name's place
    for name in sottovoce.__all__:
        assert not isinstance(getattr(sottovoce, name), types.ModuleType), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sottovoce.nothing


def test_type_checkers_see_the_public_names() -> None:
    """They read `__init__.pyi`, which has the names again: `from sottovoce.MODULE import NAME as NAME`."""
    stub = Path(sottovoce.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    seen = {
        (alias.asname, str(node.module).removeprefix("sottovoce."))
        for node in ast.walk(ast.parse(stub)) if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    assert seen == set(sottovoce._PUBLIC.items())


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md")))])
def test_documented_commands_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, flags=re.M):
        assert f"\n{target}:" in makefile
    for line in re.findall(r"(?:^|`|-m )sottovoce ([a-z]+ [^`\n]*)", text, flags=re.M):
        command, *words = line.split()
        assert command in main.commands, line
        options = {option for parameter in main.commands[command].params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0].rstrip(".,") for word in words if word.startswith("--")} <= {*options, "--help"}, line
    for script in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (ROOT / script).is_file()


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """What looks like markup or an emoji to rich is neither: `sottovoce[av]`, a clip called `[red]:cat:.wav`."""
    table = Table("[bold]")
    table.add_row(":dog: [av]")
    terminal = console()
    terminal.print("sottovoce[av] [red]:cat:.wav")
    terminal.print(table)
    shown = capsys.readouterr().out
    assert "sottovoce[av] [red]:cat:.wav" in shown
    assert "[bold]" in shown
    assert ":dog: [av]" in shown


@pytest.fixture(scope="module")
def plan(model_folder: Path) -> dict[str, Any]:
    code, printed, shown = run("quantize", model_folder, "out", "--dry-run", "--json")
    assert code == 0, shown
    found: dict[str, Any] = json.loads(printed)
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--plan", "odd.json"), 1, "the model does not have the layer 'odd'"),
        (("--plan", "plan.json", "--target", "gguf"), 1, "made for the target compressed-tensors, and transcribe.cpp was asked for"),
        (("--plan", "nothere.json"), 1, "nothere.json: no such file; write a plan with"),
        (("--max-memory", "foo"), 2, "'foo' is not a size"),
        (("--language", "xx"), 1, "language 'xx'"),
        (("--padding-weight", 5), 2, "is not in the range 0<=x<=1"),
        (("--curvature", 2), 2, "is not in the range 0<=x<=1"),
        (("--joined", 2), 2, "is not in the range 0<=x<=1"),
        (("--frame-subsampling", 0), 2, "is not in the range x>=1"),
    ],
)
def test_a_dry_run_refuses_what_a_real_run_does(
    arguments: tuple[object, ...],
    code: int,
    words: str,
    plan: dict[str, Any],
    model_folder: Path,
    speech_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.json").write_text(json.dumps(plan))
    Path("odd.json").write_text(json.dumps(plan | {"layers": [plan["layers"][0] | {"name": "odd"}, *plan["layers"]]}))
    said = []
    for more in (("--dry-run",), ("--calibration", speech_folder)):
        found, _, shown = run("quantize", model_folder, "out", *arguments, *more)
        assert found == code, shown
        assert words in shown
        said.append(shown.splitlines()[-1])
        assert said[-1].startswith("Error: ")
    assert said[0] == said[1]


def test_sizes_are_those_in_the_targets_file(model_folder: Path) -> None:
    code, _, shown = run("quantize", model_folder, "out", "--dry-run", "--target", "gguf", "--bits", 2)
    assert code == 0
    assert "size in the file" in shown
    assert "the codes of 33 layers are narrower than what holds them" in shown
    assert "narrower" not in run("quantize", model_folder, "out", "--dry-run", "--target", "gguf")[2]


@pytest.mark.parametrize("command", ["inspect", "verify", "report"])
def test_what_is_no_quantized_folder(command: str, tmp_path: Path) -> None:
    code, _, shown = run(command, tmp_path / "nothere")
    assert (code, shown) == (1, f"Error: {tmp_path / 'nothere'}: no such folder; give one written by `sottovoce quantize`\n")
    (tmp_path / "t.bin").write_bytes(b"lmgg")
    code, _, shown = run(command, tmp_path / "t.bin")
    assert code == 1
    assert "in place of an exported file give the folder that it was made from" in shown


def test_inspect_tells_the_original_the_language_of_the_speech(model_folder: Path, speech_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("quantize", model_folder, out, "--method", "rtn", "--group-size", 32)[0] == 0
    errors = ("inspect", out, "--errors", speech_folder, "--utterances", 2, "--language")
    code, _, shown = run(*errors, "en")
    assert code == 0, shown
    code, _, shown = run(*errors, "de")
    assert code == 1
    assert "transcribes English (en) only, and language 'de' was asked for" in shown


def test_an_exported_file_takes_no_options_of_pytorch(tmp_path: Path, speech_folder: Path) -> None:
    (tmp_path / "t.bin").write_bytes(b"lmgg")
    for option, words in (("--dtype=bfloat16", "computes on the CPU"), ("--fallback", "decodes without fallback")):
        code, _, shown = run("evaluate", tmp_path / "t.bin", speech_folder, option)
        assert code == 1
        assert f"t.bin is an export for whisper.cpp, which {words}" in shown
        assert "--runtime" not in shown


@pytest.mark.parametrize(("encoder_s", "cells"), [(1.5, ["1.5", "2.5"]), (0.0, ["-", "2.5 (both)"])])
def test_a_runtime_that_does_not_tell_its_parts_apart(encoder_s: float, cells: list[str]) -> None:
    times = types.SimpleNamespace(encoder_s=encoder_s, decoder_s=2.5, audio_s=1.0)
    result: Any = types.SimpleNamespace(model_bytes=1, rtfx=1.0, transcription=times)
    assert _timing_cells(result)[2:] == cells


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bench", "R.toml", "--out", "OUT"), "finished cells are kept, and the same command continues"),
        (("demo",), "what it had finished is kept in its folder"),
        (("inspect", "Q"), "nothing was written"),
    ],
)
def test_a_stop_says_what_is_kept(words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main.commands[words[0]], "callback", stopped)
    code, _, shown = run(*words)
    assert code == 130
    assert shown.startswith(f"stopped; {said}")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory is exhausted (MemoryError); give"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 TB"), "memory is exhausted ([enforce fail]"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "the memory of the device is exhausted"),
        (OSError(errno.ENOSPC, "No space left on device"), "the result cannot be written (No space left on device)"),
    ],
)
def test_what_runs_out_is_told_in_a_sentence(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(main.commands["inspect"], "callback", failing)
    code, _, shown = run("inspect", "Q")
    assert code == 1
    assert shown.startswith(f"Error: {said}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["--help"], ["inspect", "--help"]])
def test_help_that_cannot_be_written_is_told_in_a_sentence(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "sottovoce", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("Error: the result cannot be written (")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EIO, "a broken disk")])
def test_other_errors_are_not_hidden(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(main.commands["inspect"], "callback", failing)
    with pytest.raises(type(error), match=str(error.args[-1])):
        run("inspect", "Q")
