"""Output: tables, and progress with what is left on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tick = Callable[[float, float], None]
NARROWEST = 164  # columns of a table of figures whose knee is all else too; a terminal that has fewer wraps lines
LINE_SECONDS = 60.0  # between two lines where there is no terminal


def console(stderr: bool = False) -> Console:
    """For tables and progress: wide enough for a front, also where output goes to a file."""
    plain = Console(stderr=stderr)
    return plain if plain.width >= NARROWEST else Console(stderr=stderr, width=NARROWEST)


def say(text: str) -> None:
    """A line for what a user should know and need not act on; on a terminal it goes above the progress."""
    print(f"srlnas: {text}", file=sys.stderr, flush=True)


@contextmanager
def progress(to: Console, title: str, words: Callable[[float], str] | None = None) -> Iterator[Tick]:
    """Gives a function of (done, total) in any unit; `words` for an amount of it, when what is spent and left is to be shown."""
    if not to.is_terminal:
        if not to.stderr:  # what goes to stderr is for errors, where nobody watches
            to.print(title)
        yield _lines(to, title, words)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[amounts]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=to, transient=True) as bar:
        task = bar.add_task(title, total=None, amounts="")
        yield lambda done, total: bar.update(task, completed=done, total=total, amounts=amounts(done, total, words))


def amounts(done: float, total: float, words: Callable[[float], str] | None) -> str:
    return f"{words(done)} spent, {words(max(0.0, total - done))} left" if words else ""


def _lines(to: Console, title: str, words: Callable[[float], str] | None) -> Tick:
    """At most a line a minute, with the time to go by the pace since the first call, or since less was done than before: a title
    may have several parts, and the pace of a whole first one made minutes of the second's seconds hours."""
    if words is None:
        return lambda done, total: None
    began = printed = time.monotonic()
    first, last = 0.0, float("inf")

    def tick(done: float, total: float) -> None:
        nonlocal printed, began, first, last
        now = time.monotonic()
        if done < last:
            began, first = now, done
        last = done
        if now - printed < LINE_SECONDS or done <= first:
            return
        printed = now
        to_go = max(0.0, total - done) * (now - began) / (done - first)
        to.print(f"{title}: {amounts(done, total, words)}, about {in_clock(to_go)} to go", highlight=False)

    return tick


def in_clock(seconds: float) -> str:
    """Hours and minutes on a clock: `1:05 h`, `12 min`."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 90 else f"{minutes} min"
