"""Tuning: what is no code in a quantized model follows the original's token distributions, codes kept."""
