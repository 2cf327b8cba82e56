"""Names of a folder of mlx-whisper. Imports nothing."""

NAME = "mlx"
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
