"""Prints every command of srlnas with its arguments, options, defaults and help: `make commands` freezes it in commands.txt."""

import inspect
from collections.abc import Iterator
from typing import Any, get_args

import typer

from nas.cli.main import app


def described(command: Any, name: str) -> Iterator[str]:
    """Lines of a command and of those below it, in the order of their names."""
    yield f"\n{name}"
    yield from (f"  {line}" for line in inspect.cleandoc(command.help or "no help").splitlines() if line)
    for parameter in command.params:
        if parameter.name != "help":
            yield from _parameter(parameter)
    for below in sorted(getattr(command, "commands", {})):
        yield from described(command.commands[below], f"{name} {below}")


def _parameter(parameter: Any) -> Iterator[str]:
    is_option = parameter.param_type_name == "option"
    names = ", ".join([*parameter.opts, *parameter.secondary_opts]) if is_option else parameter.name.upper()
    annotation = parameter.type_descriptor.annotation
    kind = str(annotation) if get_args(annotation) else annotation.__name__
    needed = "required" if parameter.required else f"default: {parameter.default}"
    yield f"  {names}  ({kind}{', repeatable' if parameter.multiple else ''}; {needed})"
    yield f"      {' '.join((parameter.help or 'no help').split())}"


if __name__ == "__main__":
    print("\n".join(described(typer.main.get_command(app), "srlnas")).strip())
