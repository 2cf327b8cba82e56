"""Convert frozen dataclasses to plain JSON data and back, with every type checked.

Plain data is what `json` writes: dicts with text keys, lists, text, whole numbers, numbers, true, false and null. Manifests, recipes
and results are dataclasses in the code and plain data in files; this module is the only way between the two.

Reading is strict, because a file that was edited by hand or written by another version must not be read as something else:

- an unknown key, a missing key without a default and a value of another type are refused, and the error names the path;
- `float` accepts a whole number; `int` accepts no `bool` and no `float`; `tuple` and `Sequence` accept a list only;
- a `Literal` accepts its very values; a union accepts what one of its members accepts.

A class with several implementations is registered once with `register_tagged_classes`, and then stands as a dict with the name of
the implementation under a key of its own.
"""

import dataclasses
import types
from collections import abc
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from cattrs import Converter, transform_error
from cattrs.cols import mapping_structure_factory
from cattrs.errors import BaseValidationError, ForbiddenExtraKeysError, IterableValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn
from cattrs.v import format_exception

from sottovoce.errors import DataError, SottovoceError

T = TypeVar("T")

SHOWN_ERRORS = 3  # a message lists so many of the errors of one value
_NAMED_VALUES: dict[type, Mapping[str, Any]] = {}  # values that stand in plain data by a name alone, by their class
NAMES: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def to_plain(value: Any) -> Any:
    """Convert a dataclass, or lists, tuples and dicts of them, to plain data.

    Raises `TypeError` for a value that plain data cannot hold, such as a tensor or a dict whose keys are no text.
    """
    return _CONVERTER.unstructure(value)


def from_plain(kind: type[T], data: Any) -> T:
    """Convert plain data to `kind`: a dataclass, or a type made of them such as `tuple[Layer, ...]` or `dict[str, Layer]`.

    Raises `DataError` that names the path of each value that does not fit, what was wanted there and what came. An error that
    a dataclass raises in `__post_init__` is reported in the same way.
    """
    try:
        return _CONVERTER.structure(data, kind)
    except BaseValidationError as exc:
        raise DataError(_message(transform_error(exc, path="$", format_exception=_in_words))) from exc
    except (TypeError, ValueError, SottovoceError) as exc:
        raise DataError(str(exc)) from exc


def register_tagged_classes(base: type, classes: Mapping[str, type], *, tag: str, named: Mapping[str, Any] | None = None) -> None:
    """Convert every subclass of `base` with its name in `classes` under the key `tag`, and read it back by that name.

    `named`: values of these classes that may stand in plain data by a name alone. `classes` and `named` may grow later: they are looked
    up when a value is converted. Each class must be a dataclass without a field `tag`.
    """
    if named is not None:
        _NAMED_VALUES[base] = named

    def applies(kind: Any) -> bool:
        return isinstance(kind, type) and issubclass(kind, base)

    def unstructure(value: Any) -> dict[str, Any]:
        own: Any = type(value)
        names = [name for name, other in classes.items() if other is own]
        if not names:
            raise TypeError(f"{own.__name__} has no name among {', '.join(classes)}")
        return {tag: names[0], **_unstructure_function(own)(value)}

    def structure(data: Any, kind: Any) -> Any:
        if isinstance(data, kind):
            return data
        if named is not None and isinstance(data, str):
            if not isinstance(named.get(data), kind):
                raise ValueError(f"{_shown(data)} is not known; wanted one of {', '.join(named)}")
            return named[data]
        if not isinstance(data, dict) or not isinstance(data.get(tag), str):
            raise TypeError(f"wanted an object with the key {tag!r}, got {_shown(data)}")
        own = classes.get(data[tag])
        if own is None or not issubclass(own, kind):
            known = ", ".join(sorted(name for name, other in classes.items() if issubclass(other, kind)))
            raise ValueError(f"{tag} {data[tag]!r} is not known; wanted one of {known}")
        return _structure_function(own)({key: value for key, value in data.items() if key != tag}, own)

    _forget_functions()
    _CONVERTER.register_unstructure_hook_func(applies, unstructure)
    _CONVERTER.register_structure_hook_func(applies, structure)


def register_hooks(kind: type[T], to_plain: Callable[[T], Any], from_plain: Callable[[Any], T]) -> None:
    """Convert `kind`, a class that is no dataclass, by two functions. `from_plain` raises `ValueError` or `TypeError`."""
    _forget_functions()
    _CONVERTER.register_unstructure_hook(kind, to_plain)
    _CONVERTER.register_structure_hook(kind, lambda data, _: from_plain(data))


@cache
def _structure_function(kind: type) -> Callable[[Any, Any], Any]:
    # The generated function would read anything that can be indexed by name; only a dict is plain data.
    read: Callable[[Any, Any], Any] = make_dict_structure_fn(
        kind, _CONVERTER, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True
    )

    def structure(data: Any, _: Any) -> Any:
        if not isinstance(data, dict):
            raise TypeError(f"wanted an object ({kind.__name__}), got {_shown(data)}")
        return read(data, kind)

    return structure


@cache
def _unstructure_function(kind: type) -> Callable[[Any], dict[str, Any]]:
    return make_dict_unstructure_fn(kind, _CONVERTER)


def _forget_functions() -> None:
    """Drop the generated functions: each has the hooks of its fields inside, as they were when it was generated."""
    _structure_function.cache_clear()
    _unstructure_function.cache_clear()


def _is_dataclass(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _structure_scalar(data: Any, kind: Any) -> Any:
    if type(data) is kind:
        return data
    if kind is float and type(data) is int:
        return float(data)
    raise TypeError(f"wanted {NAMES[kind]}, got {_shown(data)}")


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _structure_literal(data: Any, kind: Any) -> Any:
    values = get_args(kind)
    # 1 == True in Python, but not in JSON.
    if not any(type(data) is type(value) and data == value for value in values):
        raise ValueError(f"wanted {_described(kind)}, got {_shown(data)}")
    return data


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _structure_union(data: Any, kind: Any) -> Any:
    members = get_args(kind)
    if type(data) in members and not isinstance(data, (dict, list)):
        return data
    fitting = [member for member in members if _same_shape(data, member)]
    if len(fitting) == 1:
        return _CONVERTER.structure(data, fitting[0])  # so that its error names the path inside
    for member in fitting:
        try:
            return _CONVERTER.structure(data, member)
        except (BaseValidationError, TypeError, ValueError, SottovoceError):
            continue
    raise ValueError(f"wanted {_described(kind)}, got {_shown(data)}")


def _same_shape(data: Any, kind: Any) -> bool:
    """Whether `kind` can be written as the kind of JSON value that `data` is."""
    origin = get_origin(kind) or kind
    if origin is Literal:
        return any(type(data) is type(value) and data == value for value in get_args(kind))
    if kind in NAMES:
        return type(data) is kind or (kind is float and type(data) is int)
    if isinstance(origin, type) and issubclass(origin, abc.Sequence):
        return isinstance(data, (list, tuple))
    if isinstance(data, str):
        return isinstance(origin, type) and any(issubclass(origin, base) for base in _NAMED_VALUES)
    return isinstance(data, dict)


def _is_sequence(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, abc.Sequence)


def _structure_sequence(data: Any, kind: Any) -> Any:
    if not isinstance(data, (list, tuple)):
        raise TypeError(f"wanted a list, got {_shown(data)}")
    wanted = get_args(kind)
    if get_origin(kind) is not tuple or wanted[-1] is Ellipsis:
        wanted = (wanted[0],) * len(data)
    if len(wanted) != len(data):
        raise ValueError(f"wanted a list of {len(wanted)}, got {len(data)} values")
    values, errors = [], []
    for index, (value, inner) in enumerate(zip(data, wanted, strict=True)):
        try:
            values.append(_CONVERTER.structure(value, inner))
        except Exception as exc:  # noqa: BLE001 - collected with its path, and raised below
            exc.add_note(IterableValidationNote(f"Structuring {kind} @ index {index}", index, inner))
            errors.append(exc)
    if errors:
        raise IterableValidationError(f"While structuring {kind!r}", errors, kind)
    return values if get_origin(kind) is list else tuple(values)


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, abc.Mapping)


def _structure_mapping_with(kind: Any, converter: Any) -> Callable[[Any, Any], Any]:
    read = mapping_structure_factory(kind, converter, dict)

    def structure(data: Any, _: Any) -> Any:
        if not isinstance(data, dict):
            raise TypeError(f"wanted an object, got {_shown(data)}")
        return read(data, kind)

    return structure


def _unstructure_mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    if unfit := [key for key in value if not isinstance(key, str)]:
        raise TypeError(f"plain data has text for keys, got {unfit[0]!r}")
    return {key: _CONVERTER.unstructure(inner) for key, inner in value.items()}


def _unchanged(value: Any) -> Any:
    return value


def _refuse_unknown(kind: Any) -> Any:
    raise TypeError(f"{kind} is no plain data; register it with register_hooks")


def _refuse_bytes(value: bytes) -> Any:
    raise TypeError(f"bytes are no plain data: {_shown(value)}")


def _make_converter() -> Converter:
    # Later registrations are asked first.
    converter = Converter(
        forbid_extra_keys=True,
        detailed_validation=True,
        unstruct_collection_overrides={abc.Sequence: list, tuple: list},
        unstructure_fallback_factory=_refuse_unknown,
    )
    converter.register_structure_hook_factory(_is_dataclass, _structure_function)
    converter.register_structure_hook_factory(_is_mapping, _structure_mapping_with)
    converter.register_structure_hook_func(_is_sequence, _structure_sequence)
    converter.register_structure_hook_func(_is_literal, _structure_literal)
    converter.register_unstructure_hook_func(_is_literal, _unchanged)
    converter.register_unstructure_hook(bytes, _refuse_bytes)
    converter.register_structure_hook_func(_is_union, _structure_union)
    for scalar in NAMES:
        converter.register_structure_hook(scalar, _structure_scalar)
        converter.register_unstructure_hook(scalar, _unchanged)
    converter.register_unstructure_hook_func(lambda kind: isinstance(kind, type) and issubclass(kind, abc.Mapping), _unstructure_mapping)
    converter.register_unstructure_hook_func(_is_mapping, _unstructure_mapping)
    return converter


def _described(kind: Any) -> str:
    if _is_union(kind):
        return " or ".join(map(_described, get_args(kind)))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind))) if len(get_args(kind)) > 1 else repr(get_args(kind)[0])
    if kind in NAMES:
        return NAMES[kind]
    return "a list" if _is_sequence(kind) else "an object"


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _in_words(exc: BaseException, kind: type | None) -> str:
    if isinstance(exc, ForbiddenExtraKeysError):
        return f"unknown key {', '.join(map(repr, sorted(map(str, exc.extra_fields))))}"
    if isinstance(exc, KeyError):
        return "required key missing"
    return str(exc) if isinstance(exc, (TypeError, ValueError, SottovoceError)) else format_exception(exc, kind)


def _message(errors: list[str]) -> str:
    """The first errors, path first."""
    lines = []
    for error in errors[:SHOWN_ERRORS]:
        text, _, path = error.rpartition(" @ $")
        lines.append(f"{path.lstrip('.')}: {text}" if path else text)
    return "; ".join(lines) + (f"; and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else "")


_CONVERTER = _make_converter()
