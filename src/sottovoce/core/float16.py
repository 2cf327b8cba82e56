"""float16 numbers as files store them, kept as float32."""

from torch import Tensor

SMALLEST = 2.0**-24  # smallest positive
LARGEST = 65504.0  # largest finite


def positive_float16(tensor: Tensor) -> Tensor:
    """Return the nearest positive finite float16 numbers, float32."""
    return tensor.clamp(SMALLEST, LARGEST).half().float()


def finite_float16(tensor: Tensor) -> Tensor:
    """Return the nearest finite float16 numbers, float32."""
    return tensor.clamp(-LARGEST, LARGEST).half().float()
