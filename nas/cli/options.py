"""What several command groups share."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from trainers.learning.recipe import Recipe

Number = TypeVar("Number", int, float)

TrackingUri = Annotated[
    str | None,
    typer.Option(help="MLflow server or database; default: MLFLOW_TRACKING_URI, else srlnas.db (sqlite) in the working folder."),
]
TRIALS_HELP = "Parquet trial list of one corpus, for the EER; may be repeated. Default: drawn within each corpus that has none."
RecipeFile = Annotated[
    Path | None, typer.Option(help="TOML of how to train, fields that differ from the defaults: see trainers/README.md.")
]
INTERRUPTED = 130  # the shell's exit code for Ctrl-C
AGAIN = 75  # EX_TEMPFAIL of sysexits.h, for SIGTERM: what was asked to end can be run again


def exit_code(stop: KeyboardInterrupt) -> int:
    """Of a command that was ended and can go on, by Ctrl-C or by SIGTERM."""
    from nas.worker.ending import Terminated

    return AGAIN if isinstance(stop, Terminated) else INTERRUPTED


def check_resumed(context: typer.Context, *new: str) -> None:
    """new: options that may be given with --resume. Raises ValueError where others were, which would change nothing."""
    allowed = {"resume", "ray_address", *new}
    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in allowed and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        may = ", ".join(f"--{name}" for name in new)
        raise ValueError(
            f"--resume goes on with what was begun: leave {', '.join(given)} out, or begin anew"
            + (f"; {may} may be given" if may else "")
        )


def numbers(text: str, option: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """`3000,8000` as numbers. Raises ValueError on anything else."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} is {text!r}; write numbers with commas, as 3000,8000 or 1,0.9") from None


def read_recipe(file: Path | None, batch: int | None) -> "Recipe":
    """The defaults, changed by a file and by --batch. Raises ValueError on what is not a recipe."""
    from search_spaces.kinds import text_of
    from trainers.learning.recipe import Recipe

    try:
        fields = tomllib.loads(text_of(file, "utf-8-sig")) if file else {}
    except FileNotFoundError:
        raise ValueError(f"there is no recipe {file}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not TOML: {error}") from None
    return Recipe.from_dict(fields | ({"batch": batch} if batch is not None else {}))
