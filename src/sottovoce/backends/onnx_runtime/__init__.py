"""ONNX folders for ONNX Runtime."""
