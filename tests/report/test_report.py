"""The report: its figures are those of the JSON, every text is escaped, and it works in a browser."""

import html
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from click.testing import CliRunner

from sottovoce import api
from sottovoce.bench.cells import Divergence
from sottovoce.bench.records import BenchResults, EvaluationRecord, LayerStrengths, UtteranceErrors
from sottovoce.checkpoint.manifest import ConfidenceRecord, read_manifest, store_confidence
from sottovoce.cli.main import main
from sottovoce.core.affine import Affine
from sottovoce.errors import DataError
from sottovoce.evaluation.confidence import ConfidenceMetrics, ConfidenceScaling, FittedConfidence
from sottovoce.evaluation.error_statistics import ErrorStatistics, ErrorTable, error_table
from sottovoce.evaluation.transcripts import Transcript, write_transcripts
from sottovoce.evaluation.wer import score_transcripts, score_utterance
from sottovoce.models.layers import Part
from sottovoce.quantization.methods import RTN
from sottovoce.quantization.recipe import Recipe, Rule
from sottovoce.report.page import bench_page, folder_page, write_report
from sottovoce.report.words import Word, aligned, worst_first
from sottovoce.system.plain_data import to_plain
from tests.conftest import make_tiny

EVIL = "<script>document.title = 'owned'</script>"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def heard(name: str, text: str, reference: str) -> Transcript:
    return Transcript(id=name, text=text, tokens=(), duration_s=1.0, reference=reference)


OURS = (
    heard("fine", "the cat sat", "the cat sat"),
    heard("worse", "the dog sat down", "the cat sat"),
    heard(f"evil {EVIL}", f"cats {EVIL} & dogs", f"cats {EVIL} dogs"),
    heard("loop", "no " * 60, "no"),
)
THEIRS = tuple(heard(t.id, t.reference or "", t.reference or "") for t in OURS)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, speech_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("report") / f"tiny & {EVIL.replace('/', '-')}"
    api.quantize(make_tiny(), folder, recipe=Recipe(format=Affine(bits=3, group_size=32)), calibration=speech_folder)
    return folder


def test_alignment() -> None:
    assert aligned("the cat sat", "the dog sat down") == (
        Word("the", "equal"), Word("dog", "substitute"), Word("sat", "equal"), Word("down", "insert"),
    )  # fmt: skip
    assert aligned("one cat", "cat") == (Word("one", "delete"), Word("cat", "equal"))
    assert aligned("", "x") == (Word("x", "insert"),)
    assert "more words" in aligned("no", "yes " * 60)[0].text


def test_the_worst_come_first() -> None:
    compared = worst_first(OURS, THEIRS)
    assert [c.id for c in compared][:2] == ["loop", "worse"]
    assert (compared[1].errors, compared[1].errors_before, compared[1].words) == (2, 0, 3)
    assert worst_first(OURS, None)[0].before is None


def table_of_errors(folder: Path) -> ErrorTable:
    """Correlated errors of all layers, as `inspect --errors --json` stores them."""
    layers = read_manifest(folder).plan.layers
    random = np.random.default_rng(0)
    one = random.standard_normal((len(layers) + 1, 50)) * 0.01 + 0.003
    found = ErrorStatistics(
        units=(*(layer.name for layer in layers), "float16"), matrix=one @ one.T / 50, measured_kl=0.012345, shuffled_kl=0.001, tokens=77,
        mode="telescoped",
    )  # fmt: skip
    return error_table(found, {layer.name: layer.part for layer in layers})


def test_a_heat_map_shows_how_errors_add_up(quantized: Path, tmp_path: Path) -> None:
    table = table_of_errors(quantized)
    file = tmp_path / "errors.json"
    file.write_text(json.dumps(to_plain(table)))
    result = CliRunner().invoke(main, ["report", str(quantized), "--errors", str(file), "--html", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text()
    assert "0.01235" in page
    assert f"{table.half_sum:.5f}" in page
    assert "errors add" in page
    assert page.count("<svg") == folder_page(quantized).count("<svg") + 1
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    images = re.findall(r'href="(data:[^;"]*)', page)
    assert policy is not None
    assert "img-src data:" in policy[1].split("; ")
    assert set(images) == {"data:image/png"}  # the map and its scale: as vectors, the page of a large model would have 50 MB
    for text in ("{", json.dumps(to_plain(table) | {"matrix": [[1.0]]}), json.dumps({"units": []})):
        file.write_text(text)
        result = CliRunner().invoke(main, ["report", str(quantized), "--errors", str(file)])
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert "inspect FOLDER --errors DATA --json" in result.stderr


def test_errors_of_another_folder_are_refused(quantized: Path, tmp_path: Path) -> None:
    table = table_of_errors(quantized)
    file, page, last = tmp_path / "errors.json", tmp_path / "page.html", table.units[-2]
    renamed = [*table.units[:-2], "proj", table.units[-1]]
    fewer = to_plain(table) | {"units": [*table.units[:-2], table.units[-1]], "matrix": [row[1:] for row in table.matrix[1:]]}
    for content, others in ((to_plain(table) | {"units": renamed}, f"'{min('proj', last)}' (and 1 more)"), (fewer, f"'{last}'")):
        file.write_text(json.dumps(content))
        result = CliRunner().invoke(main, ["report", str(quantized), "--errors", str(file), "--html", str(page)])
        assert (result.exit_code, result.stderr.count("\n"), page.exists()) == (1, 1, False)
        assert f"the errors are of another model than {quantized.name}: only one of the two has the layer {others};" in result.stderr


def test_figures_equal_the_manifest_and_the_score(quantized: Path) -> None:
    page = folder_page(quantized, OURS, THEIRS)
    manifest, score = read_manifest(quantized), score_transcripts(OURS, THEIRS)
    assert f'id="wer" data-value="{score.wer}"' in page
    assert f'data-value="{manifest.files["model.safetensors"].bytes}"' in page
    rows = re.findall(r"<tr data-key=.*?</tr>", page)
    assert len(rows) == len(manifest.layers)
    for row, layer in zip(rows, manifest.layers, strict=True):
        assert layer.name.removeprefix("model.") in row
        assert '<td class="left">int3</td>' in row
        for key in ("strength", "vulnerability", "inherited_error", "outgoing_error"):
            assert f'data-value="{getattr(layer, key)}"' in row
    assert '<b class="bad">failed</b>; looped: loop' in page


def test_no_text_becomes_markup_and_nothing_is_fetched(quantized: Path) -> None:
    page = folder_page(quantized, OURS, THEIRS)
    assert EVIL not in page
    assert page.count("<script>") == 1
    assert html.escape(f"evil {EVIL}", quote=True).replace("&#x27;", "&#39;") in page
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", without_names)
    assert "default-src 'none'" in page


def test_pages_are_the_same_each_time_and_need_no_transcripts(quantized: Path) -> None:
    assert folder_page(quantized) == folder_page(quantized)
    assert "No transcripts were given" in folder_page(quantized)


@pytest.mark.parametrize("against", [None, (heard("a", "", ""), heard("b", "thanks", ""))])
def test_silence_alone_has_no_rate(quantized: Path, against: tuple[Transcript, ...] | None) -> None:
    page = folder_page(quantized, (heard("a", "thank you", ""), heard("b", "", "")), against)
    assert '<b id="wer" data-value="">-</b><span>word error rate, 0 words</span>' in page
    assert ('<b id="reference" data-value="">-</b>' in page) == (against is not None)
    assert "2 utterances without words; 2 words recognized in them." in page
    assert ('<b class="bad">failed</b>; spoken silence: a.' in page) == (against is not None)
    assert "points against the original" not in page
    assert "No transcripts were given" not in page
    assert "nan %" not in page


def test_the_original_has_the_metric_of_the_model(quantized: Path) -> None:
    said = "今天天气很好"
    ours, theirs = (replace(heard("a", text, said), language=code) for text, code in (("今天", "zh"), ("今天天气", "en")))
    page = folder_page(quantized, [ours], [theirs])
    assert f'<b id="reference" data-value="{2 / 6}">33.33 %</b>' in page
    assert "<b>+33.33</b>" in page


def test_transcripts_that_name_no_language_are_of_the_one_given(quantized: Path, tmp_path: Path) -> None:
    ours, theirs, page = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl", tmp_path / "page.html"
    write_transcripts(ours, [heard("a", "今天天气好好", "今天天气很好")])
    write_transcripts(theirs, [heard("a", "今天天气很好", "今天天气很好")])
    command = ["report", str(quantized), "--html", str(page), "--language", "zh"]
    result = CliRunner().invoke(main, [*command, "--transcripts", str(ours), "--against", str(theirs)])
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    assert "16.67 %</b><span>character error rate" in text
    assert "1 of 6 characters wrong, 0 before" in text
    assert '<span class="sub">好</span>' in text
    refused = CliRunner().invoke(main, command)
    assert (refused.exit_code, "--language has no effect without --transcripts" in refused.stderr) == (2, True)


def test_the_head_alone_may_be_quantized(tmp_path: Path) -> None:
    rules = tuple(Rule(part=part, bits=16) for part in get_args(Part) if part != "head")
    api.quantize(make_tiny(), tmp_path / "head", recipe=Recipe(method=RTN(), format=Affine(bits=4, group_size=32), rules=rules))
    page = folder_page(tmp_path / "head")
    assert page.count("<tr data-key=") == 1
    assert "Error along the depth" not in page


def test_stored_confidences_are_drawn(quantized: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(quantized, folder)
    assert 'id="confidence"' not in folder_page(folder)
    bins = [(0.1 * i + 0.05, 0.1 * i, 3) for i in range(9)] + [(None, None, 0)]
    metrics = ConfidenceMetrics(
        words=27, accuracy=0.4, mean_confidence=0.45, expected_calibration_error=0.0512, normalized_cross_entropy=0.1,
        bins=tuple(bins),
    )  # fmt: skip
    fitted = FittedConfidence(
        temperature=ConfidenceScaling(0.9), platt=ConfidenceScaling(0.8, 0.1),
        raw_metrics=metrics, temperature_metrics=metrics, platt_metrics=metrics,
        fitted_words=30,
    )  # fmt: skip
    store_confidence(folder, ConfidenceRecord(fitted=fitted, data=EVIL, seed=0))
    page = folder_page(folder)
    assert 'id="confidence"' in page
    assert page.count("<td>0.051</td>") == 3
    assert EVIL not in page


def record(
    method: str, bits: int, seed: int | None, transcripts: tuple[Transcript, ...], mean: float, number_format: str | None = None
) -> EvaluationRecord:
    errors = UtteranceErrors.of([score_utterance(transcript) for transcript in transcripts])
    divergence = None if method == "none" else Divergence(mean=mean, median=mean, tokens=10)
    return EvaluationRecord(
        model=EVIL, method=method, bits=bits, format=number_format, seed=seed, data="set", divergence=divergence, utterances=errors
    )


def test_bench_page() -> None:
    results = BenchResults(
        evaluations=(
            record("none", 16, None, THEIRS, 0.0),
            record("rtn", 3, None, OURS, 0.5),
            record("fade", 3, 0, OURS[:3] + THEIRS[3:], 0.2),
            record("fade", 3, 1, THEIRS, 0.1),
        ),
        layers=tuple(
            LayerStrengths(
                model=EVIL,
                method="fade",
                bits=3,
                seed=seed,
                names=("l0", "l1", "l2"),
                parts=("encoder",) * 3,
                strengths=(0.0, 0.1, 0.2),
            )
            for seed in (0, 1)
        ),
    )
    page = bench_page("name", results)
    assert EVIL not in page
    assert page.count("<tr data-key=") == 3
    assert page.count("<svg") == 3


def test_a_bench_of_named_formats_names_them() -> None:
    named = ("q4_0", "q4_k", "nf4")
    rows = [record("none", 16, None, THEIRS, 0.0), *(record("rtn", 4, None, OURS, 0.5, name) for name in named)]
    page = bench_page("name", BenchResults(evaluations=tuple(rows), layers=()))
    cells = re.findall(r'<td data-value="(\d+)">([^<]*)</td><td class="left" data-value="(?:none|rtn)"', page)
    assert sorted(cells) == sorted([("16", "16"), *(("4", name) for name in named)])


@pytest.mark.parametrize("name", ["transcripts", "against", "errors", "language"])
def test_a_bench_takes_nothing_of_one_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "bench" / "cells").mkdir(parents=True)
    with pytest.raises(DataError, match=f"results of a bench, and only the page of a quantized folder shows {name}; leave that"):
        write_report(tmp_path / "bench", **{name: "x"})
    assert [file.name for file in tmp_path.iterdir()] == ["bench"]


def test_the_command(quantized: Path, tmp_path: Path) -> None:
    write_transcripts(tmp_path / "ours.jsonl", OURS)
    write_transcripts(tmp_path / "theirs.jsonl", THEIRS)
    command = ["report", str(quantized), "--html", str(tmp_path / "page.html")]
    given = ["--transcripts", str(tmp_path / "ours.jsonl"), "--against", str(tmp_path / "theirs.jsonl")]
    result = CliRunner().invoke(main, command + given)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "page.html").read_text() == folder_page(quantized, OURS, THEIRS)
    assert CliRunner().invoke(main, command + given[2:]).exit_code == 2
    assert CliRunner().invoke(main, ["report", str(tmp_path)]).exit_code == 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("Chromium and its driver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_in_a_browser(browser: object, quantized: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    page = tmp_path / "page.html"
    page.write_text(folder_page(quantized, OURS, THEIRS), encoding="utf-8")
    browser.get(page.as_uri())
    assert "owned" not in browser.title
    assert browser.get_log("browser") == []
    layers = read_manifest(quantized).layers

    def column(index: int) -> list[str]:
        cells = browser.find_elements(By.CSS_SELECTOR, f"#layers tbody tr:not([hidden]) td:nth-child({index})")
        return [cell.get_attribute("data-value") or cell.text for cell in cells]

    browser.find_element(By.XPATH, "//table[@id='layers']//button[text()='vulnerability']").click()
    assert [float(v) for v in column(5)] == sorted((row.vulnerability for row in layers), reverse=True)
    browser.find_element(By.XPATH, "//table[@id='layers']//button[text()='vulnerability']").click()
    assert [float(v) for v in column(5)] == sorted(row.vulnerability for row in layers)
    browser.find_element(By.XPATH, "//button[@data-key='decoder cross']").click()
    assert len(column(1)) == sum(row.part == "decoder cross" for row in layers)
    box = browser.find_element(By.CSS_SELECTOR, "input[type=search]")
    box.send_keys("dog sat")
    shown = [u for u in browser.find_elements(By.CSS_SELECTOR, ".utterance") if u.is_displayed()]
    assert len(shown) == 1
    charts = browser.find_elements(By.CSS_SELECTOR, "#errors svg, #strengths svg")
    assert all(chart.size["height"] > 100 for chart in charts)
    assert len(charts) == 2
    assert browser.get_log("browser") == []
    assert json.loads(browser.find_element(By.TAG_NAME, "pre").text) == to_plain(read_manifest(quantized).recipe)
