"""File formats of other runtimes, written from the codes of a quantized model."""
