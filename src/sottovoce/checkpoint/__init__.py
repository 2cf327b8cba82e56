"""A quantized recognizer as a folder."""
