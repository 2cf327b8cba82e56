"""Names in a folder of sherpa-onnx. Imports nothing."""

NAME = "sherpa-onnx"
TOKENS = "tokens.txt"
# Encoder and decoder by family. Moonshine's are those of the layout that sherpa-onnx calls v2.
FILES = {"whisper": ("encoder.onnx", "decoder.onnx"), "moonshine": ("encoder_model.onnx", "decoder_model_merged.onnx")}
