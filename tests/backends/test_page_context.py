"""What the page in a browser says of contexts, in Node.js, against Python."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce.backends.onnx_runtime.web_page import SCRIPTS
from sottovoce.evaluation.context import Context, EncoderWindow
from tests.conftest import make_tiny

SAMPLES = (1, 320, 321, 1600, 16000, 16001, 29 * 16000, 474_880, 474_881, 480_000)


def test_the_page_takes_the_positions_and_frames_that_python_takes(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copyfile(SCRIPTS / "context.js", tmp_path / "context.js")
    (tmp_path / "run.js").write_text(
        f"""import {{ contextOf, shortened }} from "./context.js";
const positions = {json.dumps(SAMPLES)}.map((n) => contextOf(n, {{ margin: 16, smallest: 100 }}, 1500));
const whole = contextOf(1600, null, 1500);
const features = Float32Array.from({{ length: 16 * 200 }}, (_, i) => i);
console.log(JSON.stringify({{ positions, whole, kept: [...shortened(features, 16, 37)], all: shortened(features, 16, 100).length }}));
"""
    )
    printed = subprocess.run([node, str(tmp_path / "run.js")], capture_output=True, text=True, check=True).stdout  # noqa: S603
    found = json.loads(printed)
    context = Context(kind="margin", positions=16, smallest=100)
    assert found["positions"] == [context.of(samples, EncoderWindow()) or 1500 for samples in SAMPLES]
    assert found["whole"] == 1500
    features = np.arange(16 * 200, dtype=np.float32).reshape(16, 200)
    kept = make_tiny().shortened({"input_features": torch.from_numpy(features)[None]}, 37)["input_features"]
    assert found["kept"] == kept.flatten().tolist()
    assert found["all"] == 16 * 200
