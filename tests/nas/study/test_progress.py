"""What a search prints of its progress where there is no terminal."""

import io

import pytest
from rich.console import Console

from nas.study.progress import progress


def test_a_second_part_has_a_pace_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes of a first part, then a second one that starts from nothing: its time to go is seconds, not hours."""
    clock, out = [0.0], io.StringIO()
    monkeypatch.setattr("nas.study.progress.time.monotonic", lambda: clock[0])
    with progress(Console(file=out, width=144), "finals", lambda seconds: f"{seconds:.0f} s") as tick:
        for seconds in range(0, 601, 10):
            clock[0] = float(seconds)
            tick(float(seconds), 1200.0)
        for seconds in range(0, 91, 10):
            clock[0] = 601.0 + seconds
            tick(float(seconds), 120.0)
    lines = out.getvalue().splitlines()
    assert lines[1] == "finals: 60 s spent, 1140 s left, about 19 min to go"
    assert lines[-1] == "finals: 60 s spent, 60 s left, about 1 min to go" and len(lines) == 12
