"""Networks on other devices: nothing mixes devices, and the results are the CPU's."""

import torch
from torch import nn

from sottovoce.quantization.calibration_set import prepare_speech
from sottovoce.quantization.methods import METHODS
from sottovoce.quantization.recipe import Recipe
from sottovoce.data.load import load_data
from sottovoce.system.devices import Placement, placed
from tests.conftest import make_tiny, quantized
from tests.pretended_device import DEVICE, PretendedDevice, PretendedTensor


def test_x(speech_folder) -> None:
    model = make_tiny()
    recipe = Recipe(method=METHODS["fade"])
    data = load_data(speech_folder)
    speech = prepare_speech(model, data)
    a = quantized(model, recipe, speech)
    with PretendedDevice() as device:
        there = model.with_network(placed(model.network, Placement(device=DEVICE)))
        there.max_duration_s = 2.0
        s2 = prepare_speech(there, data)
        assert s2.transcripts == speech.transcripts
        b = quantized(there, recipe, s2)
    for name in a.weights:
        assert torch.equal(a.weights[name].codes, b.weights[name].codes), name
