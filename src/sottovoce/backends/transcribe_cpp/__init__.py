"""GGUF files of transcribe.cpp."""
