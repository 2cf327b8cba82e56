"""Rounded activations against the reference quantizer of the package `gguf`."""

import gguf
import numpy as np
import torch

from sottovoce.evaluation.activation_rounding import int8_activations, round_to_int8
from tests.conftest import make_tiny


def test_rounding_is_that_of_ggml() -> None:
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(0))
    x[0] = 0
    x[1] *= 1e3
    kind = gguf.GGMLQuantizationType.Q8_0
    assert np.array_equal(round_to_int8(x).numpy(), gguf.dequantize(gguf.quantize(x.numpy(), kind), kind))


def test_only_the_named_layers_round_and_only_meanwhile() -> None:
    model = make_tiny()
    samples = np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    features = model.features([samples])
    before = model.encode(features).states
    with int8_activations(model, [layer.name for layer in model.layers()]):
        rounded = model.encode(features).states
    assert 1e-5 < float((rounded - before).norm() / before.norm()) < 0.1
    assert torch.equal(model.encode(features).states, before)


def test_scales_of_other_blocks_and_digits() -> None:
    """Of two blocks of four, each on its largest magnitude over 127; scales are float16 numbers unless told otherwise."""
    x = torch.tensor([[0.3, -1.0, 0.5, 0.1, 20.0, 3.0, -7.0, 0.05]])
    exact = round_to_int8(x, block=4, half_scales=False)
    for block, largest in ((slice(0, 4), 1.0), (slice(4, 8), 20.0)):
        step = largest / 127
        torch.testing.assert_close(exact[:, block], torch.round(x[:, block] / step) * step)
        half = float(torch.tensor(step).half())
        torch.testing.assert_close(round_to_int8(x, block=4)[:, block], torch.round(x[:, block] / step) * half, rtol=1e-6, atol=0)
    assert torch.equal(round_to_int8(torch.zeros(2, 64)), torch.zeros(2, 64))
