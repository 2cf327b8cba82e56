"""The formats that a fit may choose from: all that have a name, and the affine ones that the target makes of its own."""

from itertools import product

from sottovoce.core.affine import BITS, GROUP_SIZES
from sottovoce.core.formats import NAMED
from sottovoce.core.number_format import NumberFormat
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
    found |= dict.fromkeys(NAMED.values())
    return tuple(found)
