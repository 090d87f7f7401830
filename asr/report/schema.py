"""Typed records to plain JSON data and back, by their annotations.

Records (dataclasses and named tuples) become objects; aligned pairs, of which there is one per
word, become three-element arrays. ``nan`` and infinities have no place in JSON and become
``null``; a ``null`` where a ``float`` belongs is read as ``nan``.
"""

import dataclasses
import math
import types
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from asr.score import AlignedPair

Record = TypeVar("Record")
_ARRAYS = (AlignedPair,)
_UNIONS = (Union, types.UnionType)


class SchemaError(ValueError):
    """JSON data that does not fit the record it should fill; the message names the field."""


@cache
def record_fields(record_type: Hashable) -> Mapping[str, Any]:
    """Names and types of a record's fields, in order; empty for what is no record."""
    hints = get_type_hints(record_type)
    if dataclasses.is_dataclass(record_type):
        return {field.name: hints[field.name] for field in dataclasses.fields(record_type)}
    return {name: hints[name] for name in getattr(record_type, "_fields", ())}


def to_json(value: Any) -> Any:
    """Turn records, tuples and mappings into objects and arrays."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, _ARRAYS):
        return list(value)
    if value is None or isinstance(value, str | int | bool):
        return value
    if fields := record_fields(type(value)):
        return {name: to_json(getattr(value, name)) for name in fields}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list | tuple) else str(value)


def from_json(record_type: type[Record], value: Any) -> Record:
    """Fill a record from JSON data. Fields that the record does not know are ignored.

    Raises:
        SchemaError: a field is missing or of the wrong type.
    """
    filled: Record = _convert(record_type, value, "report")
    return filled


def _convert(expected: Any, value: Any, where: str) -> Any:
    origin = get_origin(expected)
    if expected is Any or (value is None and origin in _UNIONS):
        return value
    if origin in _UNIONS:
        return _convert(_without_none(expected), value, where)
    if origin in (tuple, Mapping):
        return _convert_container(expected, value, where)
    if origin is Literal or expected in (int, float, str, bool):
        return _convert_plain(expected, value, where)
    return _convert_record(expected, value, where)


def _convert_container(expected: Any, value: Any, where: str) -> Any:
    if get_origin(expected) is tuple:
        items = _checked(isinstance(value, list), value, where, "a list")
        return tuple(_convert(get_args(expected)[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    items = _checked(isinstance(value, dict), value, where, "an object")
    return {key: _convert(get_args(expected)[1], item, f"{where}.{key}") for key, item in items.items()}


def _convert_plain(expected: Any, value: Any, where: str) -> Any:
    if get_origin(expected) is Literal:
        return _checked(value in get_args(expected), value, where, f"one of {', '.join(get_args(expected))}")
    if expected is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return math.nan if value is None else float(_checked(is_number, value, where, "a number"))
    return _checked(type(value) is expected, value, where, f"of type {expected.__name__}")


def _convert_record(record_type: Any, value: Any, where: str) -> Any:
    fields = record_fields(record_type)
    if record_type in _ARRAYS:
        is_array = isinstance(value, list) and len(value) == len(fields)
        value = dict(zip(fields, _checked(is_array, value, where, f"a list of {len(fields)}"), strict=True))
    _checked(isinstance(value, dict), value, where, "an object")
    missing = [name for name in fields if name not in value]
    if missing:
        raise SchemaError(f"{where} lacks the field {missing[0]}")
    return record_type(
        **{name: _convert(kind, value[name], f"{where}.{name}") for name, kind in fields.items()}
    )


def _without_none(union: Any) -> Any:
    return next(kind for kind in get_args(union) if kind is not type(None))


def _checked(is_right: bool, value: Any, where: str, wanted: str) -> Any:
    if not is_right:
        raise SchemaError(f"{where} is {str(value)[:60]!r}, must be {wanted}")
    return value
