"""What several command groups share."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

Number = TypeVar("Number", int, float)

TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow server or database; default: srlnas.db (sqlite) in the working folder.")
]
INTERRUPTED = 130  # the shell's exit code for Ctrl-C


def numbers(text: str, option: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """`3000,8000` as numbers. Raises ValueError on anything else."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} is {text!r}; write numbers with commas, as 3000,8000 or 1,0.9") from None
