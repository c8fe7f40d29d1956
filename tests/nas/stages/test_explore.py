"""What a search tries before anything is proposed."""

import pytest

from nas.stages.explore import KEYWORDS, QUARTER, first_candidates
from search_spaces.architecture import RECEPTIVE_FIELD
from search_spaces.catalog import find_space
from search_spaces.cost import cost
from trainers.teacher.teacher import load_teacher


@pytest.mark.parametrize("name", ["edge", "default", "paper"])
@pytest.mark.parametrize("teacher", ["mini", "mini-hubert"])
def test_a_student_of_a_quarter_is_among_the_first(name: str, teacher: str) -> None:
    loaded = load_teacher(teacher)
    architecture, geometry = loaded.architecture, loaded.geometry
    space = find_space(name, architecture, geometry)
    first = first_candidates(space, architecture, geometry)
    sizes = [cost(a, geometry, KEYWORDS, RECEPTIVE_FIELD, "every state").params for a in (architecture, *first)]
    small = [size for size in sizes[1:] if size <= QUARTER * sizes[0]]
    assert all(member in space for member in first)
    assert max(small) > (QUARTER / 3 if name == "edge" else QUARTER / 2) * sizes[0]
