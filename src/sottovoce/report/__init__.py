"""A quantized folder or a bench as one HTML page that needs nothing else: no network, no files beside it."""
