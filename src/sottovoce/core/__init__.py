"""The mathematics of quantization: tensors in, tensors out. Imports torch and the error tree, nothing else of the package."""
