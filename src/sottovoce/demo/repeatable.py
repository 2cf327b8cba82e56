"""The same figures again: a fixed number of threads, kernels that do not depend on the processor, and a digest of the speech.

Sums of floating-point numbers depend on their order, which depends on the number of threads and on the width of the processor's
vectors. A quantized model amplifies that: another last digit in a sum can move a weight to the next code. The synthesizer runs in ONNX
Runtime, whose kernels cannot be chosen, so its samples may differ between processors; the digest tells whether they do.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from sottovoce.data.dataset import DataSet

# Of PyTorch, oneDNN and MKL: the kernels for AVX2, which every x86 processor since 2015 has.
KERNELS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}
PCM_STEPS = 32768  # of full scale, as the speech is stored
# Of the samples from which the documented figures come (AMD EPYC with AVX2).
KNOWN_SPEECH = {
    "calibration": "d6b437f352603177e6565606f43d0dc207c9e3c25539f314386a286b2b30de2b",
    "test": "7378b8ee469a61987463c8bf2394ecb436fef21f35659b1b03cb9aa1db506203",
}


def choose_kernels() -> bool:
    """Choose kernels that do not depend on the processor, where nothing else was chosen. Return whether it was in time for PyTorch."""
    for name, value in KERNELS.items():
        os.environ.setdefault(name, value)
    return "torch" not in sys.modules


@contextmanager
def deterministic() -> Iterator[None]:
    """Let PyTorch take only kernels whose results repeat; what was set before comes back."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def samples_digest(data: DataSet) -> str:
    """Hash the samples of a data set as whole numbers of 16 bits, in order."""
    digest = hashlib.sha256()
    for utterance in data:
        digest.update(np.round(utterance.samples() * PCM_STEPS).astype("<i4").tobytes())
    return digest.hexdigest()
