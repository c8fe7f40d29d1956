"""Output: tables, and progress with a remaining time on a terminal, a line a stage elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tick = Callable[[float, float], None]
NARROWEST = 144  # columns of a table of figures; a terminal that has fewer wraps lines


def console(stderr: bool = False) -> Console:
    """For tables and progress: wide enough for a front, also where output goes to a file."""
    plain = Console(stderr=stderr)
    return plain if plain.width >= NARROWEST else Console(stderr=stderr, width=NARROWEST)


@contextmanager
def progress(to: Console, title: str) -> Iterator[Tick]:
    """Gives a function of (done, total) in any unit."""
    if not to.is_terminal:
        if not to.stderr:  # what goes to stderr is for errors, where nobody watches
            to.print(title)
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=to, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
