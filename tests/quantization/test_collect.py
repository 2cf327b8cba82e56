"""The lockstep calibrator against a plain reference: two models, one layer at a time, a whole forward pass for each."""

import weakref

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration

from sottovoce.data.folds import assign_folds
from sottovoce.errors import CalibrationError
from sottovoce.models.batching import Batch
from sottovoce.models.layers import Layer
from sottovoce.quantization.batches import PositionWeights, make_batches
from sottovoce.quantization.collect import _projection, collect_statistics
from sottovoce.quantization.lockstep import PausedLayer, run_in_lockstep
from sottovoce.system.devices import share_weights
from tests.conftest import make_tiny, windows


def captured(network: nn.Module, name: str, inputs: dict[str, object]) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = network.get_submodule(name).register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    network(**inputs)
    hook.remove()
    assert len(seen) == 1
    return seen[0]


def slow_moments(
    original: nn.Module, quantized: nn.Module, name: str, batches: list[Batch], positions: str, fold: int
) -> tuple[torch.Tensor, ...]:
    hessian, cross, total, total_hat, weight = 0, 0, 0, 0, 0.0
    for batch in batches:
        x, x_hat = captured(original, name, batch.inputs).double(), captured(quantized, name, batch.inputs).double()
        for u in range(len(x)):
            if batch.folds[u] != fold:
                continue
            for t in range(x.shape[1]):
                w = float(batch.weights[positions][u, t])
                hessian = hessian + w * torch.outer(x_hat[u, t], x_hat[u, t])
                cross = cross + w * torch.outer(x[u, t] - x_hat[u, t], x_hat[u, t])
                total, total_hat, weight = total + w * x[u, t], total_hat + w * x_hat[u, t], weight + w
    return hessian, cross, total / weight, total_hat / weight, torch.tensor(weight)


def damage(module: nn.Module) -> None:
    """Stands for quantization: a change that is the same whenever it is made."""
    module.weight = nn.Parameter(torch.round(module.weight * 4) / 4, requires_grad=False)


def tiny_batches(padding: float = 0.25) -> tuple[object, list[Batch]]:
    model = make_tiny()
    generator = np.random.default_rng(0)
    recordings = [generator.standard_normal(6000 + 4000 * i).astype(np.float32) for i in range(5)]
    transcripts = [[10 + i, 20, 30 + i][: 1 + i % 3] for i in range(5)]
    folds = assign_folds(["a", "b", "a", "c", "d"])
    return model, make_batches(
        model,
        windows(recordings, transcripts, folds),
        batch_size=2,
        positions=PositionWeights(padding=padding, subsampling=2),
    )


def test_moments_equal_the_plain_reference_at_every_layer() -> None:
    model, batches = tiny_batches()
    walking, slow, plain = (share_weights(model.network) for _ in range(3))
    order = []
    for layer, inputs in collect_statistics([model.network, walking], batches, model.layers()):
        for fold in (0, 1):
            expected = slow_moments(plain, slow, layer.name, batches, layer.positions, fold)
            got = inputs.folds[fold]
            scale = float(expected[0].abs().max())
            torch.testing.assert_close(got.moments.hessian.matrix, expected[0], rtol=1e-4, atol=1e-5 * scale)
            weight = plain.get_submodule(layer.name).weight
            pull = weight.double() @ expected[1]
            torch.testing.assert_close(got.moments.cross_output(weight), pull, rtol=1e-3, atol=1e-5 * scale)
            assert got.moments.projected == (layer.mlp_output and weight.shape[1] > 2 * weight.shape[0])
            torch.testing.assert_close(got.mean, expected[2], rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(got.quantized_mean, expected[3], rtol=1e-3, atol=1e-5)
            assert got.weight == pytest.approx(float(expected[4]))
        damage(walking.get_submodule(layer.name))
        damage(slow.get_submodule(layer.name))
        order.append(layer.name)
    assert sorted(order) == sorted(layer.name for layer in model.layers())
    assert order.index("model.encoder.layers.1.fc2") < order.index("model.decoder.layers.0.encoder_attn.k_proj")


def test_what_a_stream_lacks_is_an_error_of_the_layers_that_write_into_it() -> None:
    """Against the formula, position by position: `sum w (W (x - x^) + r - r^) x^^T` and `mean(r - r^)`, also about the means."""
    model, batches = tiny_batches()
    walking, slow, plain = (share_weights(model.network) for _ in range(3))
    writers = []
    for layer, inputs in collect_statistics([model.network, walking], batches, model.layers(), compensate_residual=True):
        if layer.residual is not None:
            weight, pulled, mean_residual_error, mean_error = plain.get_submodule(layer.name).weight.double(), 0.0, 0.0, 0.0
            for batch in batches:
                x, x_hat = (captured(net, layer.name, batch.inputs).double() for net in (plain, slow))
                r, r_hat = (captured(net, layer.residual, batch.inputs).double() for net in (plain, slow))
                for u, t in (batch.weights[layer.positions] > 0).nonzero().tolist():
                    share = float(batch.weights[layer.positions][u, t])
                    error = weight @ (x[u, t] - x_hat[u, t]) + r[u, t] - r_hat[u, t]
                    pulled = pulled + share * torch.outer(error, x_hat[u, t])
                    mean_residual_error, mean_error = mean_residual_error + share * (r[u, t] - r_hat[u, t]), mean_error + share * error
            total = inputs.total
            tolerance = {"rtol": 1e-3, "atol": 1e-5 * float(total.moments.hessian.matrix.abs().max())}
            torch.testing.assert_close(total.moments.cross_output(weight), pulled, **tolerance)
            torch.testing.assert_close(total.mean_residual_error, mean_residual_error / total.weight, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(
                total.centered.cross_output(weight), pulled - torch.outer(mean_error, total.quantized_mean), **tolerance
            )
            writers.append(layer.name)
        else:
            assert inputs.residual_samples is None
        damage(walking.get_submodule(layer.name))
        damage(slow.get_submodule(layer.name))
    assert len(writers) == 2 * 2 + 2 * 3


def test_centred_moments_are_covariances() -> None:
    model, batches = tiny_batches(padding=0.0)
    plain = share_weights(model.network)
    for layer, inputs in collect_statistics([model.network], batches, model.layers()[:1], magnitudes=True):
        rows = torch.cat([captured(plain, layer.name, b.inputs)[b.weights["frames"] > 0] for b in batches]).double()
        centered = rows - rows.mean(0)
        torch.testing.assert_close(inputs.total.centered.hessian.matrix, centered.T @ centered, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(inputs.magnitude, rows.abs().mean(0).float(), rtol=1e-4, atol=1e-5)
        assert float(inputs.total.centered.cross.abs().max()) == 0


def test_layers_with_one_input_share_its_moments() -> None:
    model, batches = tiny_batches()
    seen = {layer.name: inputs for layer, inputs in collect_statistics([model.network], batches, model.layers())}
    first = "model.encoder.layers.0.self_attn"
    assert seen[f"{first}.q_proj"] is seen[f"{first}.k_proj"] is seen[f"{first}.v_proj"]
    assert seen[f"{first}.out_proj"] is not seen[f"{first}.q_proj"]
    cross = {id(seen[f"model.decoder.layers.{i}.encoder_attn.{p}_proj"]) for i in (0, 1) for p in "kv"}
    assert len(cross) == 1  # the encoder's output, for all layers of the decoder


def test_one_forward_pass_per_network_and_batch() -> None:
    model, batches = tiny_batches()
    calls: list[int] = []
    model.network.model.encoder.conv1.register_forward_pre_hook(lambda _m, _a: calls.append(1))
    copy = share_weights(model.network)
    calls.clear()
    for _ in collect_statistics([model.network, copy], batches, model.layers()):
        pass
    assert len(calls) == 2 * len(batches)


def test_any_architecture_walks() -> None:
    """Speech2Text: convolutions that shorten the input, sinusoidal positions; nothing is known of it but layer names."""
    torch.manual_seed(0)
    config = Speech2TextConfig(
        vocab_size=50, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, input_feat_per_channel=8, num_conv_layers=2, conv_channels=16, max_source_positions=40,
        max_target_positions=20, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    network = Speech2TextForConditionalGeneration(config).eval()
    quantized = share_weights(network)
    plain = share_weights(network)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and "layers" in n]
    inputs = {
        "input_features": torch.randn(2, 32, 8),
        "decoder_input_ids": torch.tensor([[2, 5, 6], [2, 7, 8]]),
        "use_cache": False,
    }
    visited = []
    for stop in run_in_lockstep([network, quantized], [inputs], names):
        torch.testing.assert_close(stop.inputs[1][0], captured(plain, stop.name, inputs))
        damage(quantized.get_submodule(stop.name))
        damage(plain.get_submodule(stop.name))
        visited.append(stop.name)
    assert sorted(visited) == sorted(names)


class Odd(nn.Module):
    """Calls `twice` twice, never calls `never`, uses `hidden`'s weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.hidden = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.twice(self.twice(x)), self.hidden.weight)


def test_layers_that_are_not_called_once_are_named() -> None:
    batch = [{"x": torch.randn(2, 4)}]
    with pytest.raises(CalibrationError, match="never called as modules in a forward pass: hidden, never"):
        list(run_in_lockstep([Odd()], batch, ["never", "hidden"]))
    with pytest.raises(CalibrationError, match="twice is called more than once"):
        list(run_in_lockstep([Odd()], batch, ["twice", "never"]))


def test_abandoned_passes_end_and_run_what_they_have_to_run() -> None:
    ended = list[str]()

    class Guarded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.second(self.first(x))
            finally:
                ended.append("ended")

    stops = run_in_lockstep([Guarded()], [{"x": torch.randn(2, 4)}, {"x": torch.randn(2, 4)}], ["first", "second"])
    held = [next(stops)]
    stops.close()
    assert ended == ["ended", "ended"]
    assert held[0].name == "first"


def test_hooks_are_gone_after_an_early_end() -> None:
    model, batches = tiny_batches()
    walk = run_in_lockstep([model.network], [b.inputs for b in batches], [layer.name for layer in model.layers()])
    next(walk)
    walk.close()
    assert not any(m._forward_pre_hooks for m in model.network.modules())
    model.network(**batches[0].inputs)  # runs through, nobody pauses it


class Watched(nn.Sequential):
    """Three layers; notes before the third which inputs of the second are still held by somebody."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        self.refs: list[weakref.ref[torch.Tensor]] = []
        self.held: list[list[bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self[0](x)
        x = self[1](x)
        self.held.append([ref() is not None for ref in self.refs])
        return self[2](x)  # type: ignore[no-any-return]


@torch.no_grad()
def test_nobody_holds_inputs_when_the_passes_go_on() -> None:
    network = Watched()
    batches = [{"x": torch.randn(2, 4)} for _ in range(2)]
    for paused in run_in_lockstep([network], batches, ["0", "1", "2"]):
        if paused.name == "1":
            network.refs = [weakref.ref(tensor) for tensor in paused.inputs[0]]
        del paused
    assert network.held == [[False, True], [False, False]]  # the second pass is still in front of the layer when the first goes on


def test_nan_in_one_recording_is_named() -> None:
    model, batches = tiny_batches()
    batches[1].inputs["input_features"][0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError, match=r"layers\.0\.self_attn\.q_proj: its inputs hold NaN"):
        list(collect_statistics([model.network], batches, model.layers()))


def test_wrong_kind_of_positions_is_refused() -> None:
    model, batches = tiny_batches()
    wrong = [Layer("model.encoder.layers.0.fc1", "encoder", "tokens")]
    with pytest.raises(CalibrationError, match="do not fit"):
        list(collect_statistics([model.network], batches, wrong))


def test_folds_keep_speakers_together_and_level() -> None:
    folds = assign_folds(["a", "b", "a", None, "c", None, "b"])
    assert folds[0] == folds[2]
    assert folds[1] == folds[6]
    assert abs(sum(folds) - len(folds) / 2) <= 1
    assert assign_folds(["a"] * 5) == [0, 0, 0, 1, 1]  # one speaker: neighbors stay together
    assert assign_folds(["a"]) == [0]


def test_position_weights_are_checked() -> None:
    with pytest.raises(CalibrationError, match=r"0 \.\. 1"):
        PositionWeights(padding=2.0)


def test_a_shared_stem_is_computed_once_and_a_changed_one_is_not() -> None:
    model, batches = tiny_batches()
    original = model.network

    def walk(copy: nn.Module) -> list[torch.Tensor]:
        inputs = [batch.inputs for batch in batches]
        name = "model.encoder.layers.0.self_attn.q_proj"
        return [tensor for stop in run_in_lockstep([original, copy], inputs, [name]) for tensor in stop.inputs[1]]

    copy = share_weights(original)
    changed = share_weights(original)
    changed.model.encoder.conv1.weight = nn.Parameter(changed.model.encoder.conv1.weight * 1.5, requires_grad=False)
    alone = [captured(net, "model.encoder.layers.0.self_attn.q_proj", b.inputs) for net in (copy, changed) for b in batches]
    got = walk(copy) + walk(changed)
    for ours, theirs in zip(got, alone, strict=True):
        assert torch.equal(ours, theirs)
    for network in (original, copy, changed):
        assert "forward" not in vars(network.model.encoder.conv1)


class Chain(nn.Module):
    """Two layers; between them the first one's outputs are doubled, and in place where `in_place` says so."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.in_place = nn.Linear(6, 6), nn.Linear(6, 6), in_place
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 0
        out = self.first(x)
        if self.in_place:
            x *= 2
        return self.second(x) + out


FIRST, SECOND = Layer("first", "encoder", "frames"), Layer("second", "encoder", "frames")


def counted(*counts: int) -> list[Batch]:
    """A batch of two utterances, one in each fold, for each number of positions; the last of them counts a quarter."""
    generator, batches = torch.Generator().manual_seed(1), list[Batch]()
    for number, count in enumerate(counts):
        weights = torch.ones(2, count)
        weights[:, -1] = 0.25
        inputs, names = {"x": torch.randn(2, count, 6, generator=generator)}, (f"a{number}", f"b{number}")
        batches.append(Batch(inputs, {"frames": weights}, torch.tensor([0, 1]), names, number=number, group=number))
    return batches


@pytest.mark.parametrize("in_place", [False, True])
def test_layers_share_statistics_of_one_tensor_unless_it_was_changed(in_place: bool) -> None:
    found = dict(collect_statistics([Chain(in_place=in_place)], counted(5), [FIRST, SECOND]))
    assert (found[FIRST] is found[SECOND]) == (not in_place)
    factor = 4 if in_place else 1
    torch.testing.assert_close(found[SECOND].total.moments.hessian.matrix, factor * found[FIRST].total.moments.hessian.matrix)


@pytest.mark.parametrize(("positions", "kept"), [(1, 1), (47, 47), (95, 95), (96, 48), (100, 50), (144, 48), (200, 50)])
def test_some_positions_of_every_batch_and_fold_are_kept_for_the_errors(positions: int, kept: int) -> None:
    """Evenly spaced, 48 or more of many; each times the root of its weight."""
    batches = counted(positions, 3)
    ((_, found),) = collect_statistics([Chain(), Chain()], batches, [FIRST])
    every = 1 if positions < 96 else positions // 48
    x, roots = batches[0].inputs["x"], batches[0].weights["frames"][0].sqrt().unsqueeze(1)
    wanted = [(x[fold] * roots)[::every] for fold in (0, 1)]
    assert [len(part) for part in wanted] == [kept, kept]
    wanted += [batches[1].inputs["x"][fold] * torch.tensor([[1.0], [1.0], [0.5]]) for fold in (0, 1)]
    assert torch.equal(found.samples, torch.cat(wanted))
    assert found.sample_roots is not None
    assert torch.equal(found.sample_roots[:kept], roots[::every])
    assert found.residual_samples is None
    assert found.magnitude.shape == (0,)


def test_magnitudes_are_means_by_the_weights_of_positions() -> None:
    batches = counted(4, 7)
    ((_, found),) = collect_statistics([Chain()], batches, [FIRST], magnitudes=True)
    total, weight = torch.zeros(6, dtype=torch.float64), 0.0
    for batch in batches:
        for x, w in zip(batch.inputs["x"].reshape(-1, 6).double(), batch.weights["frames"].flatten().tolist(), strict=True):
            total, weight = total + w * x.abs(), weight + w
    torch.testing.assert_close(found.magnitude, (total / weight).float())
    silent = [Batch({"x": torch.ones(1, 2, 6)}, {"frames": torch.zeros(1, 2)}, torch.tensor([0]))]
    ((_, nothing),) = collect_statistics([Chain()], silent, [FIRST], magnitudes=True)
    assert not nothing.magnitude.any()


def test_all_positions_count_where_a_family_says_nothing_of_them() -> None:
    """Whatever the shape of what a layer reads; factors multiply the weights."""
    layer, x = Layer("first", "encoder", "all"), torch.randn(1, 2, 3, 6)
    batch = Batch({"x": x}, {}, torch.tensor([1]))
    factors = {"first": [torch.tensor([[0.5, 1.0, 2.0, 1.0, 0.0, 1.0]])]}
    rows = x.reshape(6, 6).double()
    for given, weights in ((None, torch.ones(6)), (factors, factors["first"][0][0])):
        ((_, found),) = collect_statistics([Chain()], [batch], [layer], factors=given)
        assert [fold.weight for fold in found.folds] == pytest.approx([0.0, float(weights.sum())])
        wanted = sum(w * torch.outer(row, row) for w, row in zip(weights.tolist(), rows, strict=True))
        torch.testing.assert_close(found.folds[1].moments.hessian.matrix, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("out", "width", "mlp_output", "projected"), [(2, 5, True, True), (2, 4, True, False), (2, 5, False, False)])
def test_the_cross_moment_is_one_of_outputs_where_those_are_few(out: int, width: int, mlp_output: bool, projected: bool) -> None:
    network = nn.ModuleDict({"layer": nn.Linear(width, out)})
    layer = Layer("layer", "encoder", "frames", mlp_output=mlp_output)
    found = _projection(network, layer, None)
    assert (found is network["layer"].weight) == projected
    assert (found is None) == (not projected)
    assert _projection(network, layer, PausedLayer("norm", [])) is network["layer"].weight


def test_every_recording_with_values_that_are_not_finite_is_named() -> None:
    batches = counted(4, 4)
    batches[0].inputs["x"][1, 2, 0] = float("inf")
    batches[1].inputs["x"][0, 1, 3] = float("nan")
    for networks in ([Chain()], [Chain(), Chain()]):
        with pytest.raises(CalibrationError, match=r"^first: its inputs hold NaN or infinite values in b0, a1; check the audio"):
            list(collect_statistics(networks, batches, [FIRST]))


def test_callbacks_come_when_all_passes_stand_before_their_module() -> None:
    order, network = list[str](), Chain()
    network.register_forward_pre_hook(lambda _module, _args: order.append("a pass begins"))
    walk = collect_statistics([network], counted(2, 2), [FIRST], before={"second": lambda: order.append("before the second")})
    for layer, _ in walk:
        order.append(layer.name)
    assert order == ["a pass begins", "a pass begins", "first", "before the second"]
