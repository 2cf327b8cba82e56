"""The page beside an ONNX folder, in a real browser: the tokens that ONNX Runtime finds in Python."""

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sottovoce.backends.onnx_runtime.web_page import LIBRARY, find_library, write_page
from sottovoce.backends.onnx_runtime.writer import write_onnx
from sottovoce.backends.registry import BACKENDS, open_runtime
from sottovoce.backends.source import Source
from sottovoce.data.audio import split_at_silence
from sottovoce.errors import ExportError, MissingDependencyError
from sottovoce.system.other_files import other_files
from tests.conftest import make_tiny, make_tiny_moonshine

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WAIT_S = 60


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture(scope="module")
def library() -> Path:
    try:
        return find_library()
    except MissingDependencyError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Iterator[tuple[Path, str]]:
    """A folder with a tiny Whisper as `whisper` (with another one beside it) and a tiny Moonshine, and its address."""
    if not CHROMIUM or not DRIVER:
        pytest.skip("Chromium and its driver are not installed")
    root = tmp_path_factory.mktemp("site")
    for name, model, original in (("whisper", make_tiny(), make_tiny(1, layers=1)), ("moonshine", make_tiny_moonshine(), None)):
        write_onnx(Source(model, {}), root / name)
        write_page(root / name, name, library, None if original is None else Source(original, {}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("Chromium and its driver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(WAIT_S)
    yield driver
    driver.quit()


def status_becomes(browser: Any, text: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, WAIT_S, 0.05).until(
        lambda b: text in b.find_element("id", "status").text or b.find_element("id", "problem").text
    )
    assert browser.find_element("id", "problem").text == ""


def in_page(browser: Any, module: str, expression: str, *values: object) -> Any:
    """What `expression` of the exports `m` of a script of the page and `v`, the values, gives."""
    script = (
        f"const done = arguments[arguments.length - 1], v = arguments; import('{module}')"
        f".then(async (m) => done({expression}), (e) => done(String(e))).catch((e) => done(String(e)))"
    )
    return browser.execute_async_script(script, *values)


def speech(seconds: float) -> np.ndarray:
    random = np.random.default_rng(0)
    return (0.1 * random.standard_normal(int(16000 * seconds))).astype(np.float32)


@pytest.mark.parametrize(("name", "seconds"), [("whisper", 1.3), ("whisper", 3.1), ("moonshine", 1.3)])
def test_tokens_are_those_of_onnx_runtime(browser: Any, site: tuple[Path, str], name: str, seconds: float) -> None:
    root, address = site
    browser.get(f"{address}/{name}/")
    status_becomes(browser, "Ready")
    samples, recognizer = speech(seconds), open_runtime("onnxruntime", root / name, 1)
    pieces = split_at_silence(samples, 2.0 if name == "whisper" else 30.0)
    wanted = [token for piece in pieces for token in recognizer.recognize([piece], None).recognitions[0].tokens]
    expression = f"await (await m.Model.load('{address}/{name}/')).transcribe(Float32Array.from(v[0]), 'en')"
    got = in_page(browser, f"{address}/{name}/page/model.js", expression, samples.tolist())
    assert got["tokens"] == wanted
    assert len(wanted) > 3


def test_features_are_those_of_transformers(browser: Any, site: tuple[Path, str]) -> None:
    browser.get(f"{site[1]}/whisper/")
    wanted = make_tiny().features([speech(1.3)])["input_features"][0].numpy()
    got = in_page(browser, f"{site[1]}/whisper/page/mel.js", "Array.from(m.logMel(Float32Array.from(v[0]), 16, 2))", speech(1.3).tolist())
    np.testing.assert_allclose(np.array(got).reshape(wanted.shape), wanted, atol=1e-4)


def test_a_file_is_transcribed_by_both_models_and_a_wrong_one_is_named(browser: Any, site: tuple[Path, str], tmp_path: Path) -> None:
    root, address = site
    browser.get(f"{address}/whisper/")
    status_becomes(browser, "Ready")
    samples = np.round(speech(1.3) * 32768) / 32768
    soundfile.write(tmp_path / "a.flac", samples, 16000, subtype="PCM_16")
    browser.find_element("id", "file").send_keys(str(tmp_path / "a.flac"))
    status_becomes(browser, "done")
    texts = [found.text for found in browser.find_elements("css selector", "article .words")]
    for text, folder in zip(texts, (root / "whisper", root / "whisper" / "original"), strict=True):
        wanted = open_runtime("onnxruntime", folder, 1).recognize([samples.astype(np.float32)], None).recognitions[0].text
        assert text.split() == wanted.split()
    (tmp_path / "notes.txt").write_text("no sound")
    browser.find_element("id", "file").send_keys(str(tmp_path / "notes.txt"))
    problem = browser.find_element("id", "problem")
    while not problem.text:
        status_becomes(browser, "")
    assert problem.text.startswith("notes.txt is not a recording that this browser can read. Choose a WAV")
    assert not browser.find_elements("css selector", "article")
    assert browser.get_log("browser") == []


def test_what_cannot_have_a_page_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sottovoce import api

    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDependencyError, match="run `npm install onnxruntime-web@"):
        api.export("q", "onnxruntime", tmp_path / "x", page=True)
    with pytest.raises(MissingDependencyError, match="other: has no npm package"):
        api.export("q", "onnxruntime", tmp_path / "x", page=True, library=tmp_path / "other")
    with pytest.raises(ExportError, match=r"whisper\.cpp has no page"):
        api.export("q", "whisper.cpp", tmp_path / "x", page=True)
    with pytest.raises(ExportError, match="add --page"):
        api.export("q", "onnxruntime", tmp_path / "x", original="bundled:tiny.en")


def test_the_folder_carries_all_that_it_needs(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text('{"name": "onnxruntime-web"}')
    for name in LIBRARY:
        (package / "dist" / name).write_text(name)
    (tmp_path / "out").mkdir()
    write_page(tmp_path / "out", "q4", find_library(package))
    assert (tmp_path / "out" / "index.html").is_file()
    assert {f.name for f in (tmp_path / "out" / "page" / "onnxruntime-web").iterdir()} == {*LIBRARY, "package.json"}
    assert other_files(tmp_path / "out", BACKENDS["onnxruntime"].files()) == []
    for script in [tmp_path / "out" / "index.html", *(tmp_path / "out" / "page").glob("*.js")]:
        assert "https://" not in script.read_text()
