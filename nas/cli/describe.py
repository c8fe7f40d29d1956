"""Words for what a user asks about before a search: spaces and corpora."""

from collections.abc import Iterator, Mapping
from typing import Any

from deploy.target import Target
from search_spaces.catalog import CATALOG
from search_spaces.cost import cost
from trainers.learning.recipe import Recipe
from trainers.teacher.teacher import load_teacher

KEYWORDS = 12  # of the students whose size is shown


def space_rows(teacher_name: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, number of architectures, range of params and of MACs (both in millions, one window) of each space."""
    teacher, window = load_teacher(teacher_name), Target(name="", description="").window
    for name, make in sorted(CATALOG.items()):
        space = make(teacher.architecture, teacher.geometry)
        ends = space.smallest(teacher.geometry), space.largest(teacher.geometry)
        costs = [cost(architecture, teacher.geometry, KEYWORDS, window, Recipe().heads) for architecture in ends]
        params, macs = ([f"{value / 1e6:.2f}" for value in values] for values in zip(*((c.params, c.total_macs) for c in costs)))
        yield name, f"{space.size:,}" if space.size < 1e9 else f"{space.size:.1e}", " to ".join(params), " to ".join(macs)


def check_lines(content: Mapping[str, Any]) -> Iterator[str]:
    """`trainers.speech.corpora.describe` as lines of text."""
    for name, value in content.items():
        if name == "remarks":
            yield from value
        elif isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            yield f"{name}:"
            yield from (f"  {inner}: {_short(known)}" for inner, known in value.items())
        else:
            yield f"{name}: {_short(value)}"


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(known)}" for name, known in value.items())
    if isinstance(value, list | tuple):
        return f"{len(value)}" + (": " + ", ".join(map(str, value[:5])) + (", ..." if len(value) > 5 else "") if value else "")
    return f"{value:.2f}" if isinstance(value, float) else str(value)
