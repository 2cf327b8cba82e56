"""Names in a folder of CrispASR, whose Moonshine loader looks for the tokenizer beside the model. Imports nothing."""

NAME = "crispasr"
MODEL, TOKENIZER = "model.gguf", "tokenizer.bin"
