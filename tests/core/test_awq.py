import torch

from sottovoce.core.affine import Affine
from sottovoce.core.awq import divide_outputs, scale_inputs, search_scales
from sottovoce.core.rtn import rtn
from tests.conftest import make_tiny, random_moments


def test_search_equals_trying_every_exponent_on_the_inputs_themselves() -> None:
    _, _, inputs = random_moments(32, seed=0)
    inputs = inputs * torch.logspace(1, -1, 32, dtype=torch.float64)[:, None]
    weight, grid = torch.randn(6, 32), Affine(bits=3, group_size=32)
    magnitude = inputs.abs().mean(1).float()
    found = search_scales([weight], [inputs @ inputs.T], [grid], magnitude)
    errors = []
    for step in range(20):
        scales = magnitude ** (step / 20)
        scales = scales / (scales.max() * scales.min()).sqrt()
        rounded = rtn(weight * scales, grid).dequantize() / scales
        errors.append(float(((weight - rounded).double() @ inputs).square().sum()))
    best = min(range(20), key=lambda step: errors[step])
    assert found.exponent == best / 20
    assert abs(found.error - errors[best]) < 1e-4 * errors[best]


def test_folding_changes_nothing_in_full_precision() -> None:
    """Every pair of Whisper's map, folded with random scales: same encoder output up to its own fold, same logits."""
    model = make_tiny(layers=2)
    network = model.network
    features, ids = torch.randn(2, 16, 200), torch.tensor([[257, 5, 6, 7], [257, 9, 3, 1]])
    before = network(input_features=features, decoder_input_ids=ids).logits
    torch.manual_seed(1)
    for fold in model.awq_mappings():
        source = model.module(fold.source)
        scales = torch.rand(source.weight.shape[0]) * 3 + 0.2
        weight, bias = divide_outputs(source.weight, source.bias, scales)
        source.weight = torch.nn.Parameter(weight)
        source.bias = torch.nn.Parameter(bias)
        for name in fold.targets:
            module = model.module(name)
            module.weight = torch.nn.Parameter(scale_inputs(module.weight, scales))
    after = network(input_features=features, decoder_input_ids=ids).logits
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    covered = {name for fold in model.awq_mappings() for name in fold.targets}
    assert {layer.name for layer in model.layers()} - covered == {
        *(layer.name for layer in model.layers() if layer.name.endswith("fc2")),
        "proj_out",
    }
