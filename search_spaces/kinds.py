"""What is read from files that others wrote: not too long, and of the kinds that fields are declared to have."""

from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

LARGEST = 1 << 53  # of a whole number: beyond that JSON's readers do not agree
LONGEST = 64 << 20  # bytes of a text: nothing that is read as one here comes near

Made = TypeVar("Made")


def text_of(path: Path, encoding: str = "utf-8") -> str:
    """Raises ValueError, before it is read, for a file that is longer than any of its kind; else as `Path.read_text`."""
    if (size := path.stat().st_size) > LONGEST:
        raise ValueError(f"{path} has {size / 1e6:.0f} MB, a text of at most {LONGEST / 1e6:.0f} is read: it is something else")
    return path.read_text(encoding=encoding)


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
