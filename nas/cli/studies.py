"""`srlnas studies`: what runs, what has ended, what it takes."""

import json
from typing import Annotated

import typer


def studies(
    names: Annotated[list[str] | None, typer.Argument(help="Names of studies; default: all.", metavar="[STUDY]...")] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Take away what ended studies no longer need: beaten candidates' weights, checkpoints.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the studies of this folder, those that run on other machines too."""
    from dataclasses import asdict

    from nas.report.overview import ENDED, overview
    from nas.study.folder import COMMANDS, open_study

    for name in names or ():
        open_study(name, commands=COMMANDS)
    rows = [row for row in overview() if not names or row.name in names]
    if prune:
        _prune([row.name for row in rows if names or row.state == ENDED])
    elif as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    elif not rows:
        typer.echo("there is no study in studies/; begin one with `srlnas search`")
    else:
        _print([(row.name, row.command, row.state, row.spent, row.left, row.front, megabytes(row.disk)) for row in rows])


def _prune(names: list[str]) -> None:
    from nas.report.overview import prune
    from nas.study.folder import COMMANDS, open_study

    total = 0
    for name in names:
        for what, freed in prune(open_study(name, commands=COMMANDS)):
            typer.echo(f"{name}: {what}, {megabytes(freed)}")
            total += freed
    typer.echo(f"{megabytes(total)} freed")


def _print(rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table

    from nas.study.progress import console

    table = Table()
    for column in ("study", "of", "state", "spent", "left", "front", "disk"):
        table.add_column(column, justify="right" if column in ("spent", "left", "disk") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
