"""One layer: what its codes and its report make of positions, and of inputs that are never active."""

import torch

from sottovoce.core.affine import Affine
from sottovoce.models.layers import Layer
from sottovoce.quantization.layer import quantize_layer
from sottovoce.quantization.methods import GPTQ, METHODS
from sottovoce.quantization.statistics import LayerStatistics, MomentAccumulator

LAYER = Layer("fc1", "encoder", "frames")


def statistics(rows: torch.Tensor, quantized: torch.Tensor, roots: torch.Tensor) -> LayerStatistics:
    """Of inputs `[400, 32]` in both networks, the first half of them in fold 0; `roots` `[400, 1]`: of their weights."""
    rows, quantized, folds = rows * roots, quantized * roots, []
    for half in (slice(0, 200), slice(200, 400)):
        sums = MomentAccumulator(32)
        sums.add(rows[half], quantized[half], roots[half])
        folds.append(sums.finish())
    return LayerStatistics((folds[0], folds[1]), rows, quantized, torch.zeros(0), sample_roots=roots)


def test_a_shift_counts_as_much_as_its_position() -> None:
    """Samples come multiplied by the root of their weight, so a bias that makes up for everything leaves nothing at any weight."""
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(16, 32, generator=generator), torch.randn(400, 32, generator=generator) + 1
    roots = torch.rand(400, 1, generator=generator) + 0.1
    lost = torch.full((1, 32), 0.5)
    seen, method = statistics(rows, rows - lost, roots), GPTQ(absorb_bias=True)
    done = quantize_layer(LAYER, weight, torch.zeros(16), seen, Affine(bits=8, group_size=32), method)
    assert done.bias is not None
    torch.testing.assert_close(done.bias, (weight @ lost.T).squeeze(1), rtol=0, atol=6e-2)
    assert done.report.outgoing_error < 1e-3


def test_a_weight_that_nothing_comes_through_does_not_widen_its_group() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, rows = 0.05 * torch.randn(16, 32, generator=generator), torch.randn(400, 32, generator=generator)
    rows[:, 3] = 0
    wide = weight.clone()
    wide[:, 3] = 2.0

    def codes(of: torch.Tensor) -> torch.Tensor:
        seen = statistics(rows, rows, torch.ones(400, 1))
        return quantize_layer(LAYER, of, None, seen, Affine(bits=4, group_size=32), METHODS["gptq"]).weight.dequantize()

    narrow = weight.clone()
    narrow[:, 3] = 0
    torch.testing.assert_close(codes(wide), codes(narrow), rtol=0, atol=0)
