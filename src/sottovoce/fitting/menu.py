"""The formats that a fit may choose from: named ones but those of stochastic rounding, and the affine ones that the target makes."""

from itertools import product

from sottovoce.core.affine import BITS, GROUP_SIZES
from sottovoce.core.formats import NAMED
from sottovoce.core.number_format import NumberFormat
from sottovoce.core.stochastic import Stochastic
from sottovoce.errors import RecipeError
from sottovoce.quantization.target import Target


def menu_formats(target: Target) -> tuple[NumberFormat, ...]:
    """Return the candidates for `target`, of which each layer gets those that the target does not refuse for it."""
    found = dict[NumberFormat, None]()
    for bits, symmetric, group_size in product(BITS, (True, False), (*GROUP_SIZES, None)):
        try:
            found[target.format(bits=bits, group_size=group_size, symmetric=symmetric)] = None
        except RecipeError:
            continue
    # Stochastic rounding gives codes of an even grid, and worse ones than the nearest: it is no choice of its own.
    found |= dict.fromkeys(named for named in NAMED.values() if not isinstance(named, Stochastic))
    return tuple(found)
