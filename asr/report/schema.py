"""Typed records to plain JSON data and back, by their annotations.

Records (dataclasses and named tuples) become objects; aligned pairs, of which there is one per
word, become three-element arrays. ``nan`` and infinities have no place in JSON and become
``null``; a ``null`` where a ``float`` belongs is read as ``nan``.
"""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from asr.score import AlignedPair

Record = TypeVar("Record")
Converter = Callable[[Any], Any]
_ARRAYS = (AlignedPair,)


class SchemaError(ValueError):
    """JSON data that does not fit the record it should fill; the message begins with the place."""

    def __init__(self, problem: str, place: str = "") -> None:
        super().__init__(f"{place.lstrip('.') or 'the report'} {problem}")
        self.problem = problem
        self.place = place

    def inside(self, outer: str) -> "SchemaError":
        return SchemaError(self.problem, outer + self.place)


def _optional_fields(record_type: Any) -> frozenset[str]:
    """Fields with a default: reports written before these existed lack them."""
    if not dataclasses.is_dataclass(record_type):
        return frozenset()
    missing = dataclasses.MISSING
    return frozenset(
        field.name
        for field in dataclasses.fields(record_type)
        if field.default is not missing or field.default_factory is not missing
    )


@cache
def record_fields(record_type: Any) -> Mapping[str, Any]:
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
    record_type: Any = type(value)
    if fields := record_fields(record_type):
        return {name: to_json(getattr(value, name)) for name in fields}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list | tuple) else str(value)


def from_json(record_type: type[Record], value: Any) -> Record:
    """Fill a record from JSON data. Fields that the record does not know are ignored.

    Raises:
        SchemaError: a field is missing or of the wrong type.
    """
    annotation: Any = record_type
    filled: Record = _converter(annotation)(value)
    return filled


@cache
def _converter(expected: Any) -> Converter:
    """Build the function that turns JSON data into ``expected``, an annotation."""
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return _as_is
    if origin in (Union, types.UnionType):
        return _optional(_converter(next(kind for kind in arguments if kind is not type(None))))
    if origin is tuple:
        return _list_of(_converter(arguments[0]))
    if origin is Mapping:
        return _object_of(_converter(arguments[1]))
    if origin is Literal or expected in (int, float, str, bool):
        return _plain(expected)
    return _record(expected)


def _as_is(value: Any) -> Any:
    return value


def _optional(convert: Converter) -> Converter:
    return lambda value: None if value is None else convert(value)


def _list_of(convert: Converter) -> Converter:
    def convert_list(value: Any) -> Any:
        items = []
        for position, item in enumerate(_checked(isinstance(value, list), value, "a list")):
            try:
                items.append(convert(item))
            except SchemaError as error:
                raise error.inside(f"[{position}]") from None
        return tuple(items)

    return convert_list


def _object_of(convert: Converter) -> Converter:
    def convert_object(value: Any) -> Any:
        items = _checked(isinstance(value, dict), value, "an object").items()
        return {key: _convert_field(convert, item, key) for key, item in items}

    return convert_object


def _plain(expected: Any) -> Converter:
    def convert_number(value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return math.nan if value is None else float(_checked(is_number, value, "a number"))

    if expected is float:
        return convert_number
    if get_origin(expected) is Literal:
        choices = get_args(expected)
        return lambda value: _checked(value in choices, value, f"one of {', '.join(choices)}")
    return lambda value: _checked(type(value) is expected, value, f"of type {expected.__name__}")


def _record(record_type: Any) -> Converter:
    converters = {name: _converter(kind) for name, kind in record_fields(record_type).items()}
    optional = _optional_fields(record_type)

    def convert_array(value: Any) -> Any:
        is_array = isinstance(value, list) and len(value) == len(converters)
        items = zip(
            converters.items(), _checked(is_array, value, f"a list of {len(converters)}"), strict=True
        )
        return record_type(*(_convert_field(convert, item, name) for (name, convert), item in items))

    def convert_object(value: Any) -> Any:
        _checked(isinstance(value, dict), value, "an object")
        for name in converters:
            if name not in value and name not in optional:
                raise SchemaError(f"lacks the field {name}")
        return record_type(
            **{
                name: _convert_field(convert, value[name], name)
                for name, convert in converters.items()
                if name in value
            }
        )

    return convert_array if record_type in _ARRAYS else convert_object


def _convert_field(convert: Converter, value: Any, name: str) -> Any:
    try:
        return convert(value)
    except SchemaError as error:
        raise error.inside(f".{name}") from None


def _checked(is_right: bool, value: Any, wanted: str) -> Any:
    if not is_right:
        raise SchemaError(f"is {str(value)[:60]!r}, must be {wanted}")
    return value
