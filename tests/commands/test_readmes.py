"""The READMEs' commands exist as written; those of the first one that take seconds are run."""

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
PACKAGES = ("search_spaces", "trainers", "deploy", "nas", "mlflow")
PAGES = [ROOT / "README.md", *(ROOT / package / "README.md" for package in PACKAGES), *sorted((ROOT / "tests").rglob("*.md"))]
OURS = ("srlnas", "make", "python")
THEIRS = ("cd", "chmod", "cp", "curl", "docker", "export", "read")  # in the pages of the tracking server


def commands_of(page: Path) -> list[str]:
    """Lines of its shell blocks, continued ones joined, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [command for line in lines if (command := line.split("  #")[0].strip())]


EVERY = {(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands_of(page)}
QUICK = (
    "srlnas profile targets",
    "srlnas profile kit",
    "srlnas spaces",
    "srlnas data import folder",
    "srlnas data check",
    "srlnas teacher check",
)


def test_there_are_commands() -> None:
    assert {page for page, _ in EVERY} == {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert all(any(command.startswith(quick) for _, command in EVERY) for quick in QUICK)


@pytest.mark.parametrize(("page", "command"), sorted(EVERY))
def test_every_command_is_one(page: str, command: str) -> None:
    """Parsed to the last option by the program itself, without running it."""
    program, *arguments = shlex.split(command.removesuffix(" ..."))
    if program not in OURS:
        assert program in THEIRS and page == "mlflow/README.md"
        return
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "python":
        places = (ROOT, ROOT / "deploy/runtime")  # an export has a copy
        assert (places[0] / arguments[0]).is_file() or (places[1] / Path(arguments[0]).name).is_file()
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
    for command in dict.fromkeys(commands_of(ROOT / "README.md") + commands_of(ROOT / "deploy/README.md")):
        if command.startswith(QUICK):
            arguments = shlex.split(command)[1:]
            done = subprocess.run([sys.executable, "-m", "nas.cli", *arguments], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_files_that_it_names_are_there(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"`((?:mlflow|trainers|deploy|nas|search_spaces|tests)/[\w./]*)`", text):
        if "exports" not in name:
            assert (ROOT / name).exists(), name
    for linked in re.findall(r"\]\((?!http|#)([^)]+)\)", text):
        assert (page.parent / linked).exists(), linked
