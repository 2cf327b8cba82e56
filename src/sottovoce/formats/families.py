"""Which families have a layout in which format."""

from sottovoce.formats.gguf import Layout
from sottovoce.formats.gguf_moonshine import MOONSHINE
from sottovoce.formats.gguf_whisper import WHISPER

GGUF_LAYOUTS: dict[str, Layout] = {"moonshine": MOONSHINE, "whisper": WHISPER}
