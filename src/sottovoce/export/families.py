"""Which families have a layout in which format."""

from sottovoce.export.gguf import Layout
from sottovoce.export.gguf_whisper import WHISPER

GGUF_LAYOUTS: dict[str, Layout] = {"whisper": WHISPER}
