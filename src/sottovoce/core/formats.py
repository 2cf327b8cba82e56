"""The number formats by name. A new one is a file in this folder, a line in `FORMATS` and a line for each of its names in `NAMED`."""

from typing import get_args

from sottovoce.core.affine import BITS, Affine
from sottovoce.core.affine_minimum import AffineMinimum
from sottovoce.core.fp4 import MXFP4, NVFP4
from sottovoce.core.iq4 import IQ4NL, IQ4XS
from sottovoce.core.k_quants import KQuant, KType
from sottovoce.core.logarithmic import Logarithmic
from sottovoce.core.nf4 import NF4
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.stochastic import Stochastic
from sottovoce.errors import RecipeError
from sottovoce.system.plain_data import register_tagged_classes

KINDS = (Affine, AffineMinimum, KQuant, IQ4NL, IQ4XS, MXFP4, NVFP4, NF4, Logarithmic, Stochastic)
FORMATS: dict[str, type[NumberFormat]] = {kind.name: kind for kind in KINDS}

# The names that users type (`--format q4_0`), with the settings they stand for. Runtimes' own names where there are any, in small letters.
NAMED: dict[str, NumberFormat] = {
    **{f"int{bits}": Affine(bits=bits) for bits in BITS},
    "q4_0": Affine(bits=4, symmetric=True),
    "q5_0": Affine(bits=5, symmetric=True),
    "q8_0": Affine(bits=8, symmetric=True),
    "q4_1": AffineMinimum(bits=4),
    "q5_1": AffineMinimum(bits=5),
    **{f"mlx{bits}": AffineMinimum(bits=bits, group_size=64) for bits in BITS},  # MLX's own groups
    **{kind.lower(): KQuant(type=kind) for kind in get_args(KType)},
    "iq4_nl": IQ4NL(),
    "iq4_xs": IQ4XS(),
    "mxfp4": MXFP4(),
    "nvfp4": NVFP4(),
    "nvfp4_ggml": NVFP4(tensor_exponent=0),  # ggml's blocks have no factor of the tensor
    "nf4": NF4(),
    **{f"pow2_{bits}": Logarithmic(bits=bits) for bits in (3, 4)},
    **{f"halfpow2_{bits}": Logarithmic(bits=bits, steps_per_octave=2) for bits in (3, 4)},
    **{f"stochastic{bits}_{seed}": Stochastic(bits=bits, symmetric=True, seed=seed) for bits in (3, 4) for seed in range(3)},
}
EXPERIMENTS = (Logarithmic, Stochastic)  # kinds that no runtime decodes as such: never advised in place of another
COMMON_WIDTH = 3072  # columns of a row that every named format divides; where a figure needs some width

# In files a format is an object with its name and its settings, {"name": "affine", "bits": 4, ...}, or one of the names above.
register_tagged_classes(NumberFormat, FORMATS, tag="name", named=NAMED)


def format_named(name: str) -> NumberFormat:
    """Return the format called `name`, in small or capital letters. Raises `RecipeError` for an unknown name."""
    found = NAMED.get(name.lower())
    if found is None:
        raise RecipeError(f"format {name!r} is not known; choose one of {', '.join(NAMED)}")
    return found


def name_of(number_format: NumberFormat) -> str | None:
    """Return the name that stands for `number_format`, or None if it has settings of its own."""
    return next((name for name, known in NAMED.items() if known == number_format), None)


def short_title(number_format: NumberFormat) -> str:
    """Return the name that stands for `number_format`, or its title if it has settings of its own."""
    return name_of(number_format) or number_format.title
