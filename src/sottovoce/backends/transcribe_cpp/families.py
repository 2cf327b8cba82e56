"""Which families have a layout in which format."""

from sottovoce.backends.transcribe_cpp.layout import Layout
from sottovoce.backends.transcribe_cpp.moonshine_layout import MOONSHINE
from sottovoce.backends.transcribe_cpp.whisper_layout import WHISPER

GGUF_LAYOUTS: dict[str, Layout] = {"moonshine": MOONSHINE, "whisper": WHISPER}
