"""Fit a model into a size: schedule, quantize, measure, and write the file."""
