"""Export from a quantized folder: written whole and tried, or refused and nothing there."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from sottovoce import api
from sottovoce.backends import agreement as verify
from sottovoce.backends import export as run
from sottovoce.backends.agreement import agree
from sottovoce.backends.backend import ORIGIN, StoredType
from sottovoce.backends.onnx_runtime.layout import DECODER, ENCODER
from sottovoce.backends.own_files import CARD_MARK
from sottovoce.backends.registry import BACKENDS, runtime_of, target_named
from sottovoce.cli.main import main
from sottovoce.core.affine import Affine
from sottovoce.data.load import load_data
from sottovoce.errors import ExportError, MissingDependencyError, OutputError, RecipeError
from sottovoce.evaluation.recognizer import Recognition, RecognitionBatch
from sottovoce.evaluation.transcripts import Transcript
from sottovoce.quantization.methods import method_named
from sottovoce.quantization.recipe import Recipe, Rule
from tests.conftest import make_tiny, planned


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "tiny-4bit"
    recipe = Recipe(method=method_named("rtn"), format=target_named("gguf").format())
    api.quantize(make_tiny(), out, recipe=recipe, target="gguf")
    return out


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real tiny.en, rounded; the search for scales takes half a minute and is of no matter here."""
    out = tmp_path_factory.mktemp("quantized") / "whisper-4bit"
    recipe = Recipe(method=method_named("rtn"), format=target_named("gguf").format(observer="minmax"))
    api.quantize("bundled:tiny.en", out, recipe=recipe, target="gguf")
    return out


class TestTargets:
    def test_each_target_has_the_grid_that_its_runtime_holds(self) -> None:
        assert target_named("hf").format() == Affine()
        assert target_named("gguf").format() == Affine(group_size=32, symmetric=True, float16_min=True)
        assert target_named("gguf").format(symmetric=False) == Affine(group_size=32, float16_min=True)
        assert target_named("gguf").format(bits=8, symmetric=None) == Affine(bits=8, group_size=32, symmetric=True, float16_min=True)
        assert target_named("onnx").format(bits=2, group_size=None) == Affine(bits=2, group_size=None)
        with pytest.raises(RecipeError, match="'tflite' is not a backend; choose one of"):
            target_named("tflite").format()

    @pytest.mark.parametrize(
        ("target", "changes", "match"),
        [
            ("gguf", {"format": Affine(bits=4, group_size=32)}, "transcribe.cpp has no blocks for '4 bits, groups of 32'"),
            (
                "ggml",
                {"format": target_named("ggml").format(), "head_bits": 8},
                "one format for all layers, head included; the plan has 4 bits.* and 8 bits",
            ),
            ("ggml", {"format": target_named("ggml").format(), "rules": (Rule(match="fc2", bits=16),)}, "4 bits.* and floating point"),
        ],
    )
    def test_a_recipe_that_does_not_suit_is_refused_before_any_work(
        self, tmp_path: Path, target: str, changes: dict[str, Any], match: str
    ) -> None:
        recipe = Recipe(method=method_named("rtn"), **changes)
        with pytest.raises(RecipeError, match=match):
            api.quantize(make_tiny(), tmp_path / "out", recipe=recipe, target=target)
        assert not (tmp_path / "out").exists()

    def test_groups_that_do_not_fill_blocks_are_named(self) -> None:
        model = make_tiny(width=48)
        recipe = Recipe(method=method_named("rtn"), format=Affine(group_size=None, symmetric=True))
        with pytest.raises(RecipeError, match="groups of 48 do not fit transcribe.cpp, which wants multiples of 32"):
            planned(model, recipe, "gguf")

    def test_a_rule_may_give_one_layer_minima(self) -> None:
        model, rule = make_tiny(), Rule(match="proj_out", bits=4, symmetric=False)
        plan = planned(model, Recipe(method=method_named("rtn"), format=target_named("gguf").format(), rules=(rule,)), "gguf")
        assert not plan.format("proj_out").symmetric
        assert plan.format("proj_out").float16_min

    def test_a_rule_may_have_blocks_of_its_own(self) -> None:
        model, rule = make_tiny(), Rule(match="proj_out", bits=4, symmetric=True)
        recipe = Recipe(
            method=method_named("rtn"),
            format=target_named("gguf").format(symmetric=False),
            rules=(rule, Rule(match="fc2", bits=8)),
        )
        plan = planned(model, recipe, "gguf")
        assert plan.format("proj_out").symmetric
        assert plan.format("model.encoder.layers.0.fc2").symmetric  # 8 bits: ggml has no other
        assert not plan.format("model.encoder.layers.0.fc1").symmetric


class TestExport:
    def test_a_real_model_is_written_and_tried_in_transcribe_cpp(self, whisper_folder: Path, tmp_path: Path) -> None:
        done = api.export(whisper_folder, "gguf", tmp_path / "tiny.gguf")
        assert done.agreement is not None
        assert done.agreement.utterances == 4
        assert done.agreement.word_difference <= 0.1
        assert done.bytes < 27.5e6  # everything at 4 bits, head included
        assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]
        heard = api.transcribe(tmp_path / "tiny.gguf", [run.CLIPS / "clip-0.ogg"]).transcripts
        assert "train to the coast" in heard[0].text.lower()
        assert heard[0].duration_s == pytest.approx(4.2)

    def test_the_same_codes_in_whisper_cpp(self, whisper_folder: Path, tmp_path: Path) -> None:
        done = api.export(whisper_folder, "ggml", tmp_path / "tiny.bin", speech=load_data(run.CLIPS).take(2))
        assert done.agreement is not None
        assert done.agreement.word_difference <= 0.1
        assert done.bytes < 26e6

    def test_narrower_codes_are_widened_and_said_so(self, tmp_path: Path) -> None:
        recipe = Recipe(method=method_named("rtn"), format=target_named("gguf").format(bits=3))
        api.quantize(make_tiny(), tmp_path / "three", recipe=recipe)
        done = api.export(tmp_path / "three", "gguf", tmp_path / "three.gguf", verify=False)
        assert len(done.widened) == len(done.types) == 33
        assert done.agreement is None

    def test_codes_for_another_target_say_what_to_do(self, tmp_path: Path) -> None:
        api.quantize(make_tiny(layers=1), tmp_path / "four", recipe=Recipe(method=method_named("rtn")))
        with pytest.raises(ExportError) as error:
            api.export(tmp_path / "four", "gguf", tmp_path / "four.gguf", verify=False)
        said = str(error.value)
        assert said.startswith(f"{tmp_path / 'four'} was made for compressed-tensors, and transcribe.cpp does not hold its codes (")
        assert said.endswith("); run `sottovoce quantize tiny OUT --target transcribe.cpp` first, and export OUT")
        assert not (tmp_path / "four.gguf").exists()

    def test_existing_files_stay_unless_overwritten(self, folder: Path, tmp_path: Path) -> None:
        file = tmp_path / "tiny.gguf"
        file.write_bytes(b"precious")
        with pytest.raises(OutputError, match="exists already"):
            api.export(folder, "gguf", file, verify=False)
        with pytest.raises(OutputError, match=r"is not an export for transcribe\.cpp"):
            api.export(folder, "gguf", file, verify=False, overwrite=True)
        assert file.read_bytes() == b"precious"
        file.write_bytes(b"GGUF of another export")
        api.export(folder, "gguf", file, verify=False, overwrite=True)
        assert file.read_bytes()[:4] == b"GGUF"
        (tmp_path / "things").mkdir()
        (tmp_path / "things" / "diary").write_text("x")
        with pytest.raises(OutputError, match="is not an export for onnxruntime"):
            api.export(folder, "onnx", tmp_path / "things", overwrite=True)

    def test_a_limit_of_tokens_that_the_file_cannot_hold_is_said(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The tiny model's settings end a transcript after 24 tokens; its decoder has more positions."""
        with caplog.at_level(logging.WARNING, logger="sottovoce"):
            api.export(folder, "gguf", tmp_path / "t.gguf", verify=False)
        said = " ".join(record.getMessage() for record in caplog.records)
        assert "ends a transcript after 24 tokens, and files of transcribe.cpp have no place for that" in said
        caplog.clear()
        kind = StoredType(name="4 bits", bits=4)  # the graphs are of no matter here, and take long to export
        quick = replace(BACKENDS["onnxruntime"], write=lambda source, _folder, _activations: dict.fromkeys(source.weights, kind))
        monkeypatch.setitem(BACKENDS, "onnxruntime", quick)
        with caplog.at_level(logging.WARNING, logger="sottovoce"):
            api.export(folder, "onnx", tmp_path / "t-onnx", verify=False)
        assert (tmp_path / "t-onnx").is_dir()
        assert not caplog.records

    def test_a_file_that_says_something_else_is_deleted(
        self, whisper_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A writer that stores wrong codes: the file loads, and its words give it away."""
        right = BACKENDS["transcribe.cpp"]

        def wrong(source: Any, file: Path, activations: str) -> dict[str, StoredType]:
            name = "model.decoder.embed_tokens"
            weight = source.weights[name]
            flipped = replace(source, weights=source.weights | {name: replace(weight, codes=weight.codes.flip(0))})
            assert right.write is not None
            return right.write(flipped, file, activations)

        monkeypatch.setitem(BACKENDS, "transcribe.cpp", replace(right, write=wrong))
        with pytest.raises(ExportError, match=r"of the words that the transcribe.cpp runtime recognizes differ .* the file was deleted"):
            api.export(whisper_folder, "gguf", tmp_path / "wrong.gguf", speech=load_data(run.CLIPS).take(1))
        assert list(tmp_path.iterdir()) == []

    def test_a_runtime_that_crashes_takes_only_its_own_process_along(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(verify, "_transcribe", _crash)
        with pytest.raises(ExportError, match="the transcribe.cpp runtime crashed on the written file"):
            api.export(folder, "gguf", tmp_path / "x.gguf", speech=load_data(run.CLIPS).take(1))
        assert list(tmp_path.iterdir()) == []

    def test_only_onnx_has_a_choice_of_activations(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="transcribe.cpp itself decides how inputs are rounded"):
            api.export(folder, "gguf", tmp_path / "x.gguf", activations="float32")
        with pytest.raises(ExportError, match="activations 'bf16' are not known; choose one of int8, float32"):
            api.export(folder, "onnx", tmp_path / "x", activations="bf16")

    def test_a_missing_package_is_named_with_its_command(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("gguf", "onnx", "onnxruntime", "transcribe_cpp", "_pywhispercpp"):
            monkeypatch.setitem(__import__("sys").modules, module, None)
        for kind, extra in (("gguf", "gguf"), ("onnx", "onnx")):
            with pytest.raises(MissingDependencyError, match=rf"pip install 'sottovoce\[{extra}\]'"):
                api.export(folder, kind, tmp_path / "x", verify=False)
        (tmp_path / "a.gguf").write_bytes(b"GGUF")
        (tmp_path / "a.bin").write_bytes(b"lmgg")
        made(tmp_path / "a", ENCODER, DECODER)
        for name, extra in (("a.gguf", "gguf"), ("a.bin", "ggml"), ("a", "onnx")):
            with pytest.raises(MissingDependencyError, match=rf"pip install 'sottovoce\[{extra}\]'"):
                api.open_recognizer(tmp_path / name)


def _crash(*_: object) -> None:
    import os

    os.abort()


class TestReplacing:
    @pytest.mark.parametrize(
        ("backend", "names"),
        [
            ("onnxruntime", (ENCODER, DECODER, "config.json", "page/main.js", "original/config.json")),
            ("sherpa-onnx", ("tokens.txt", "encoder.onnx", "decoder.onnx")),
            ("mlx", ("config.json", "weights.safetensors")),
        ],
    )
    def test_a_folder_with_a_file_that_no_export_writes_stays(self, tmp_path: Path, backend: str, names: tuple[str, ...]) -> None:
        target = made(tmp_path / "mine", *names, "onnx/notes.md", "src/a.py")
        with pytest.raises(OutputError, match=rf"mine holds onnx/notes\.md, which no export for {backend} writes, so it is not replaced"):
            run.refuse_existing_export(target, BACKENDS[backend], overwrite=True)

    def test_a_folder_must_say_that_sottovoce_wrote_it(self, tmp_path: Path) -> None:
        target = made(tmp_path / "mine", "config.json", DECODER, ".gitattributes")
        model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
        (target / ENCODER).write_bytes(model.SerializeToString())
        for content in (model.SerializeToString(), b"damaged"):
            (target / ENCODER).write_bytes(content)
            with pytest.raises(OutputError, match="mine does not say that sottovoce wrote it, so it is not replaced"):
                run.refuse_existing_export(target, BACKENDS["onnxruntime"], overwrite=True)
        onnx.helper.set_model_props(model, {ORIGIN: "0" * 64})
        (target / ENCODER).write_bytes(model.SerializeToString())
        run.refuse_existing_export(target, BACKENDS["onnxruntime"], overwrite=True)
        (target / "README.md").write_text("# mine")
        with pytest.raises(OutputError, match=r"holds README\.md"):
            run.refuse_existing_export(target, BACKENDS["onnxruntime"], overwrite=True)
        (target / "README.md").write_text(f"A quantized speech recognizer, {CARD_MARK}.")
        run.refuse_existing_export(target, BACKENDS["onnxruntime"], overwrite=True)

    def test_a_link_to_a_file_stays_a_link(self, folder: Path, tmp_path: Path) -> None:
        api.export(folder, "gguf", tmp_path / "t.gguf", verify=False)
        (tmp_path / "latest.gguf").symlink_to("t.gguf")
        (tmp_path / "t.gguf").write_bytes(b"GGUF of another export")
        assert api.export(folder, "gguf", tmp_path / "latest.gguf", verify=False, overwrite=True).file == tmp_path / "t.gguf"
        assert (tmp_path / "latest.gguf").is_symlink()
        assert (tmp_path / "t.gguf").stat().st_size > 1000

    def test_a_name_makes_no_file_an_export(self, tmp_path: Path) -> None:
        for name, backend in (("pytorch_model.bin", "whisper.cpp"), ("t.gguf", "transcribe.cpp")):
            (tmp_path / name).write_bytes(b"PK\3\4")
            assert runtime_of(tmp_path / name) is None
            with pytest.raises(OutputError, match=f"is not an export for {backend}"):
                run.refuse_existing_export(tmp_path / name, BACKENDS[backend], overwrite=True)
        made(tmp_path / "crisp", "model.gguf", "tokenizer.bin")
        assert runtime_of(tmp_path / "crisp") is None


def made(folder: Path, *names: str) -> Path:
    """A folder with empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


class TestAgreement:
    def test_words_count_not_commas(self) -> None:
        ours = [Transcript(id=str(i), text=t, tokens=(), duration_s=1.0) for i, t in enumerate(["A red fox.", "It ran", ""])]
        theirs = [replace(t, text=x) for t, x in zip(ours, ["a red fox", "It ran away", ""], strict=True)]
        found = agree(tuple(ours), tuple(theirs))
        assert (found.utterances, found.equal) == (3, 2)
        assert found.word_difference == pytest.approx(1 / 5)

    def test_silence_against_words_is_all_wrong(self) -> None:
        one = Transcript(id="a", text="three words here", tokens=(), duration_s=1.0)
        assert agree((one,), (replace(one, text=""),)).word_difference == 1
        assert agree((replace(one, text=""),), (one,)).word_difference == 1


class TestCommand:
    def test_quantize_says_what_comes_next_and_export_does_it(self, tmp_path: Path) -> None:
        model = tmp_path / "model"
        tiny = make_tiny()
        tiny.network.save_pretrained(model)
        tiny.processor.save_pretrained(model)
        out, file = tmp_path / "four", tmp_path / "four.gguf"
        done = CliRunner().invoke(main, ["quantize", str(model), str(out), "--method", "rtn", "--target", "gguf"])
        assert done.exit_code == 0, done.output
        assert f"next: sottovoce export {out} transcribe.cpp {file}" in done.stdout
        done = CliRunner().invoke(main, ["export", str(out), "gguf", str(file), "--no-verify", "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["bytes"] == file.stat().st_size
        assert set(found["types"].values()) == {"Q4_0"}
        done = CliRunner().invoke(main, ["export", str(out), "ggml", str(tmp_path / "four.bin")])
        assert done.exit_code == 1
        assert "OpenAI's vocabulary" in done.stderr

    def test_evaluate_and_transcribe_run_a_folder_in_another_runtime(self, folder: Path, speech_folder: Path) -> None:
        done = CliRunner().invoke(main, ["evaluate", str(folder), str(speech_folder), "--runtime", "gguf", "--limit", "2", "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["words"] > 0
        done = CliRunner().invoke(main, ["transcribe", str(folder), str(speech_folder / "u0.wav"), "--runtime", "gguf"])
        assert done.exit_code == 0, done.output
        done = CliRunner().invoke(
            main,
            [
                "transcribe",
                str(folder),
                str(speech_folder / "u0.wav"),
                "--runtime",
                "gguf",
                "--json",
                "--confidence",
                "raw",
            ],
        )
        assert done.exit_code == 1
        assert "take word confidences in the runtime torch or onnxruntime instead" in done.stderr

    def test_a_file_runs_as_what_it_is(self, folder: Path, tmp_path: Path) -> None:
        api.export(folder, "gguf", tmp_path / "t.gguf", verify=False)
        assert runtime_of(tmp_path / "t.gguf") == "transcribe.cpp"
        (tmp_path / "renamed").write_bytes((tmp_path / "t.gguf").read_bytes())
        assert runtime_of(tmp_path / "renamed") == "transcribe.cpp"
        with pytest.raises(RecipeError, match="is made for the runtime transcribe.cpp, and onnxruntime was asked for"):
            api.open_recognizer(tmp_path / "t.gguf", "onnx")


def test_bench_runs_in_runtimes_too(tmp_path: Path, speech_folder: Path) -> None:
    """Words of each runtime are rows of their own; what is finished is found again."""
    model = tmp_path / "model"
    tiny = make_tiny()
    tiny.network.save_pretrained(model)
    tiny.processor.save_pretrained(model)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'models = ["{model}"]\nmethods = ["rtn"]\nbits = [4]\nseeds = [0]\ndata = ["{speech_folder}"]\n'
        'target = "gguf"\nhead_bits = 4\nruntimes = ["torch", "gguf"]\n'
    )
    arguments = ["bench", str(recipe), "--out", str(tmp_path / "out"), "--threads", "2"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "| 4 | rtn, transcribe.cpp | 1 |" in done.stdout
    assert "| 4 | rtn | 1 |" in done.stdout
    done = CliRunner().invoke(main, arguments)
    assert "0 cells computed" in done.stderr
    cells = [json.loads(f.read_text()) for f in (tmp_path / "out" / "cells").glob("evaluation-*.json")]
    assert {cell["key"]["runtime"] for cell in cells} == {"torch", "transcribe.cpp"}
    assert not any("transcribe.cpp" in p.name for p in (tmp_path / "out" / "cache").iterdir())


class _Fake:
    """A recognizer of a user's own."""

    source, max_duration_s, stored_bytes = "fake", 30.0, 7

    def recognize(self, recordings: list[np.ndarray], language: str | None, *, confidence: bool = False) -> RecognitionBatch:
        return RecognitionBatch(
            recognitions=[Recognition(text="words of number", tokens=(), ended=True) for _ in recordings],
            encoder_s=1.0,
            decoder_s=1.0,
        )

    def recognize_long(self, recording: np.ndarray, language: str | None) -> None:
        return None


def test_any_recogniser_can_be_evaluated(speech_folder: Path) -> None:
    found = api.evaluate(_Fake(), speech_folder, limit=4)
    assert found.model_bytes == 7
    assert found.score.wer == pytest.approx(1 / 4)
