"""The number formats by name. A new one is a file in this folder and a line here."""

from sottovoce.core.affine import Affine
from sottovoce.core.number_format import NumberFormat
from sottovoce.system.plain_data import register_tagged_classes

FORMATS: dict[str, type[NumberFormat]] = {kind.name: kind for kind in (Affine,)}

# In files a format is an object with its name and its settings: {"name": "affine", "bits": 4, ...}
register_tagged_classes(NumberFormat, FORMATS, tag="name")
