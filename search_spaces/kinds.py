"""Whether a value that was read from a file is of the kind that a field is declared to have."""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

LARGEST = 1 << 53  # of a whole number: beyond that JSON's readers do not agree


Made = TypeVar("Made")


def made_of(cls: type[Made], values: Mapping[str, Any]) -> Made:
    """A dataclass of values that were read from a file. Raises ValueError, in the class's own words where it has some, for fields
    that are missing, unknown, or of another kind than they are declared to have."""
    try:
        made = cls(**values)
    except (TypeError, ArithmeticError) as error:
        check_kinds(cls, values)
        raise ValueError(f"{cls.__name__}: {error}") from None
    check_kinds(cls, values)
    return made


def check_kinds(cls: type, values: Mapping[str, object]) -> None:
    """Raises ValueError for a value of another kind than the field of a dataclass is declared to have."""
    for name, hint in get_type_hints(cls).items():
        if name in values and not is_of(values[name], hint):
            raise ValueError(f"{cls.__name__} has {name} = {str(values[name])[:40]!r}, which is of another kind than it can be")


def is_of(value: object, hint: Any) -> bool:
    """hint: as in a frozen dataclass of JSON or TOML: str, bool, int, float, `tuple[..., ...]`, `Mapping[str, ...]`, `Literal`, and
    unions of these."""
    if get_origin(hint) in (Union, UnionType):
        return any(is_of(value, part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(is_of(part, get_args(hint)[0]) for part in value)
    if get_origin(hint) in (Mapping, dict):
        return isinstance(value, Mapping) and all(is_of(part, get_args(hint)[1]) for part in value.values())
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint in (int, float):
        is_number = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
        return is_number or (hint is float and isinstance(value, float))
    if hint is Any:
        return True
    return value is None if hint is NoneType else isinstance(value, hint)
