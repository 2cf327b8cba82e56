"""What is known of each named number format: its size, and the backends that hold it, by their own records."""

from dataclasses import dataclass

from sottovoce.backends.backend import Backend
from sottovoce.backends.registry import BACKENDS
from sottovoce.core.formats import COMMON_WIDTH, NAMED
from sottovoce.core.number_format import NumberFormat

WIDEST_MULTIPLE = 256  # no backend wants rows to be a multiple of more


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A backend that holds a format.

    `row_multiple`: what the columns of a row must be a multiple of. `stored`: the runtime's own name of the type (None: as the folder
    has it). `widened`: whether codes take more bits there than they have.
    """

    backend: str
    row_multiple: int
    stored: str | None
    widened: bool


@dataclass(frozen=True, kw_only=True)
class KnownFormat:
    """A named format. `bits_per_weight`: with all parameters; `block`: columns that are fitted together (None: a whole row)."""

    name: str
    title: str
    code_bits: int
    bits_per_weight: float
    levels: str
    block: int | None
    holders: tuple[Holder, ...]


def known_formats() -> tuple[KnownFormat, ...]:
    """Return every named format, by falling size."""
    found = [_known(name, number_format) for name, number_format in NAMED.items()]
    return tuple(sorted(found, key=lambda known: -known.bits_per_weight))


def _known(name: str, number_format: NumberFormat) -> KnownFormat:
    block = number_format.block_size(COMMON_WIDTH)
    holders = [holder for backend in BACKENDS.values() if (holder := _holder(backend, number_format)) is not None]
    return KnownFormat(
        name=name,
        title=number_format.title,
        code_bits=number_format.code_bits,
        bits_per_weight=number_format.bits_per_weight(COMMON_WIDTH),
        levels=number_format.levels,
        block=None if block == COMMON_WIDTH else block,
        holders=tuple(holders),
    )


def _holder(backend: Backend, number_format: NumberFormat) -> Holder | None:
    multiple = 1
    while multiple <= WIDEST_MULTIPLE and backend.target.misfit(number_format, "encoder", multiple) is not None:
        multiple *= 2
    if multiple > WIDEST_MULTIPLE:
        return None
    stored = None if backend.stored is None else backend.stored(number_format)
    return Holder(
        backend=backend.name,
        row_multiple=multiple,
        stored=None if stored is None else stored.name,
        widened=stored is not None and stored.bits > number_format.code_bits,
    )
