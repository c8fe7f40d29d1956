"""The README's commands exist as written; those that take seconds are run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer

from nas.cli.main import app

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
QUICK = (
    "srlnas profile targets",
    "srlnas profile kit",
    "srlnas spaces",
    "srlnas data import folder",
    "srlnas data check",
    "srlnas teacher check",
)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 10
    assert all(any(command.startswith(quick) for command in COMMANDS) for quick in QUICK)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    """Parsed to the last option by the program itself, without running it."""
    program, *arguments = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "python":
        assert (ROOT / "deploy/runtime" / Path(arguments[0]).name).is_file()
    else:
        assert program == "srlnas"
        group = typer.main.get_command(app)
        context = group.make_context("srlnas", list(arguments), resilient_parsing=False)
        name, found, rest = group.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
        while hasattr(found, "commands") and not (found.invoke_without_command and rest[0].startswith("-")):
            context = found.make_context(name, rest, parent=context)
            name, found, rest = found.resolve_command(context, [*context._protected_args, *context.args])
        found.make_context(name, rest, parent=context)


def test_the_quick_ones_run_as_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for keyword in ("yes", "no"):
        (tmp_path / "recordings" / keyword).mkdir(parents=True)
        for speaker in range(12):
            path = tmp_path / "recordings" / keyword / f"s{speaker}_0.wav"
            soundfile.write(path, 0.1 * rng.standard_normal(16_000), 16_000)
    for command in COMMANDS:
        if command.startswith(QUICK):
            arguments = shlex.split(command)[1:]
            done = subprocess.run([sys.executable, "-m", "nas.cli.main", *arguments], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_the_files_that_it_names_are_there() -> None:
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"`((?:mlflow|trainers|deploy|nas|search_spaces)/[\w./]*)`", text):
        if "exports" not in name:
            assert (ROOT / name).exists(), name
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (ROOT / picture).is_file(), picture
