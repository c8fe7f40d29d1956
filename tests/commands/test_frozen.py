"""The command line as users know it: every command, option, default and help text. `make commands` writes commands.txt anew."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_the_command_line_is_the_frozen_one() -> None:
    printed = subprocess.run([sys.executable, str(HERE / "commands.py")], capture_output=True, text=True, check=True).stdout
    changed = "an option or a help text changed: if it should, run `make commands`, and say so in the changelog"
    assert printed == (HERE / "commands.txt").read_text(), changed


def test_everything_has_a_help_text() -> None:
    assert "no help" not in (HERE / "commands.txt").read_text()
