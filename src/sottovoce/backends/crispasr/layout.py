"""Names in a folder of CrispASR, whose Moonshine loader looks for the tokenizer beside the model. Imports nothing."""

NAME = "crispasr"
MODEL, TOKENIZER = "model.gguf", "tokenizer.bin"
QWEN = "qwen3asr"  # architecture of a Qwen3-ASR file, and what its keys begin with; its tokenizer is inside
LIMIT = "sottovoce.max_new_tokens"  # key of the most tokens of a transcript
HEADER = 256  # bytes at the begin of a GGUF file that tell its architecture
