"""The number formats by name. A new one is a file in this folder and a line here."""

from sottovoce.core.affine import Affine
from sottovoce.core.fp4 import MXFP4, NVFP4
from sottovoce.core.iq4 import IQ4NL, IQ4XS
from sottovoce.core.logarithmic import Logarithmic
from sottovoce.core.nf4 import NF4
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.stochastic import Stochastic
from sottovoce.system.plain_data import register_tagged_classes

KINDS = (Affine, IQ4NL, IQ4XS, MXFP4, NVFP4, NF4, Logarithmic, Stochastic)
FORMATS: dict[str, type[NumberFormat]] = {kind.name: kind for kind in KINDS}

# In files a format is an object with its name and its settings: {"name": "affine", "bits": 4, ...}
register_tagged_classes(NumberFormat, FORMATS, tag="name")
