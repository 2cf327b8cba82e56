"""The ONNX folder in the packages that read it beside ours: onnx-asr, and transformers.js in Node.js."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from sottovoce.backends.onnx_runtime.layout import DECODER, ENCODER, cache_names
from sottovoce.backends.onnx_runtime.writer import write_onnx
from sottovoce.backends.registry import open_runtime
from sottovoce.backends.source import open_source
from sottovoce.models.whisper import Whisper
from tests.backends.conftest import rounded, small_openai

JS_PACKAGE = Path("node_modules/@huggingface/transformers")
LAST_STEP = 30  # tokens that are compared: a random model does not end


@pytest.fixture(scope="module")
def model() -> Whisper:
    return small_openai(layers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Whisper) -> Path:
    folder = tmp_path_factory.mktemp("readers") / "small-onnx"
    write_onnx(open_source(rounded(model)), folder)
    return folder


def speech(seconds: float = 2.0) -> np.ndarray:
    random = np.random.default_rng(0)
    return (0.1 * random.standard_normal(int(16000 * seconds))).astype(np.float32)


def continued(folder: Path, features: np.ndarray, prompt: list[int], steps: int) -> list[int]:
    """Return the most probable tokens after a prompt, all positions computed anew at each step: no cache, no list of suppressed tokens."""
    encoder, decoder = (onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"]) for name in (ENCODER, DECODER))
    states = encoder.run(None, {"input_features": features})[0]
    shapes = {given.name: given.shape for given in decoder.get_inputs()}
    empty = {name: np.zeros((1, shapes[name][1], 0, shapes[name][3]), np.float32) for name in cache_names(1, "past_key_values")}
    tokens = list(prompt)
    for _ in range(steps):
        feed = {"input_ids": np.array([tokens]), "encoder_hidden_states": states, "use_cache_branch": np.array([False])}
        tokens.append(int(decoder.run(["logits"], feed | empty)[0][0, -1].argmax()))
    return tokens[len(prompt) :]


def test_onnx_asr_finds_the_files_and_follows_them(folder: Path, model: Whisper) -> None:
    """Its tokens are those of its own prompt in our graphs: start, language, task, no timestamps; English-only models repeat the start."""
    onnx_asr = pytest.importorskip("onnx_asr")
    reader = onnx_asr.load_model("whisper", folder, providers=["CPUExecutionProvider"])
    samples = speech()
    heard = reader.recognize(samples, sample_rate=16000, language="en")
    settings = model.network.generation_config
    prompt = [settings.decoder_start_token_id] * 3 + [settings.no_timestamps_token_id]
    features = reader.asr._preprocessor(samples[None], np.array([len(samples)]))[0]
    features = features if isinstance(features, np.ndarray) else features.numpy()
    tokens = continued(folder, features, prompt, LAST_STEP)
    wanted = model.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    ours = model.features([samples])["input_features"].numpy()
    assert np.abs(features - ours).max() < 0.02  # its front end is another implementation
    assert len(wanted.split()) > 3
    assert heard.startswith(wanted.strip()[:-8])  # the last letters may be the half of a character


def test_transformers_js_hears_the_same_tokens(folder: Path, tmp_path: Path, model: Whisper) -> None:
    node = shutil.which("node")
    package = next((here / JS_PACKAGE for here in (Path.cwd(), *Path.cwd().parents) if (here / JS_PACKAGE).is_dir()), None)
    if node is None or package is None:
        pytest.skip("Node.js or the npm package @huggingface/transformers is not installed")
    samples = speech()
    (tmp_path / "samples.f32").write_bytes(samples.tobytes())
    script = tmp_path / "hear.mjs"
    script.write_text(
        f"""import {{ pipeline, env }} from {json.dumps((package / "dist/transformers.node.mjs").as_uri())};
import fs from "fs";
env.allowRemoteModels = false; env.localModelPath = {json.dumps(str(folder.parent) + "/")};
const bytes = fs.readFileSync({json.dumps(str(tmp_path / "samples.f32"))});
const recognize = await pipeline("automatic-speech-recognition", {json.dumps(folder.name)}, {{ dtype: "fp32" }});
const heard = await recognize(new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4), {{ max_new_tokens: {LAST_STEP} }});
console.log("HEARD " + JSON.stringify(heard.text));
"""
    )
    done = subprocess.run([node, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    heard = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("HEARD ")).removeprefix("HEARD "))
    wanted = open_runtime("onnxruntime", folder, 1).recognize([samples], None).recognitions[0]
    assert len(wanted.tokens) > LAST_STEP
    assert heard.strip() == model.processor.tokenizer.decode(wanted.tokens[:LAST_STEP], skip_special_tokens=True).strip()
