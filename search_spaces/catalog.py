"""The named search spaces. Each is made from a teacher, so that one name works for a small teacher and for a large one."""

import dataclasses
from collections.abc import Callable, Iterable
from itertools import combinations
from math import comb

from search_spaces.architecture import BC_UNIT, Architecture, FrontEnd, Geometry
from search_spaces.space import SearchSpace

BC_WIDTHS = tuple(round(BC_UNIT * scale) for scale in (1, 1.5, 2, 3, 6, 8))  # the paper's scales: arXiv 2106.04140
QUARTER = 0.25  # of a teacher's weights: about the size of the student that the paper compares with it
MOST_WHOLE = 3  # sets of kept layers of a depth, where all are offered
SpaceMaker = Callable[[Architecture, Geometry], SearchSpace]


def paper_student(teacher: Architecture) -> Architecture:
    """The student of Kerpicci et al. (arXiv 2210.16611): the teacher's convolutions and the first of its layers, a sixth of them
    (2 of 12 in the paper) and at least one, at full width."""
    depth = max(1, teacher.depth // 6)
    return dataclasses.replace(
        teacher, heads=teacher.heads[:depth], ffn_dims=teacher.ffn_dims[:depth], kept_layers=teacher.kept_layers[:depth]
    )


def published_students(teacher: Architecture) -> dict[str, Architecture]:
    """Students that were made by hand, in proportion to the teacher: the paper's, whose encoder is also DistilHuBERT's (arXiv
    2110.01900), and LightHuBERT Small (arXiv 2203.15610): all layers, half the width, heads and units."""
    light = dataclasses.replace(
        teacher,
        width=max(1, teacher.width // 2),
        heads=tuple(max(1, heads // 2) for heads in teacher.heads),
        ffn_dims=tuple(max(1, units // 2) for units in teacher.ffn_dims),
    )
    return {"paper's student": paper_student(teacher), "LightHuBERT Small": light}


def _paper(teacher: Architecture, geometry: Geometry) -> SearchSpace:
    """The paper's student and its neighbours: each choice at the teacher's size or half of it, one to four layers."""
    return SearchSpace(
        name="paper",
        front_widths={teacher.front_end: _parts(teacher.front_width, (1 / 2, 1))},
        frame_strides=(1, 2),
        widths=_parts(teacher.width, (1 / 2, 1), geometry.position_groups),
        heads=_parts(max(teacher.heads), (1 / 2, 1)),
        ffn_dims=_parts(max(teacher.ffn_dims), (1 / 2, 1)),
        kept_layers=_kept_layers(teacher.depth, range(1, 5)),
    )


def _edge(teacher: Architecture, geometry: Geometry) -> SearchSpace:
    """Small students, of about the same size whatever the teacher: from about 0.02 M weights, with layers from 0.1 M, up to a few
    million."""
    return SearchSpace(
        name="edge",
        front_widths=_fronts(
            teacher,
            wave=_at_most(teacher.front_width, (32, 48, 64, 96)),
            mel=_at_most(teacher.front_width, (32, 64, 96, 128, 256)),
            bc=(32, 64, 96),
        ),
        frame_strides=(1, 2),
        widths=_at_most(teacher.width, (80, 128, 192, 256, 384), geometry.position_groups),
        heads=_at_most(max(teacher.heads), (1, 2, 4)),
        ffn_dims=_at_most(max(teacher.ffn_dims), (128, 256, 512)),
        kept_layers=((), *_kept_layers(teacher.depth, range(1, 5))),
    )


def _edge_96(teacher: Architecture, geometry: Geometry) -> SearchSpace:
    """A full factorial of 96 small students from a teacher of three layers or more: four front ends, two strides, three widths,
    four sets of kept layers. Small enough to train all of it: the recorded benchmark of searches is made of it."""
    last = teacher.depth
    kept = {(1,), tuple(range(1, min(2, last) + 1)), tuple(sorted({max(1, last // 2), last})), tuple(range(1, min(4, last) + 1))}
    return SearchSpace(
        name="edge-96",
        front_widths=_fronts(
            teacher,
            wave=_at_most(teacher.front_width, (96,)),
            mel=_at_most(teacher.front_width, (32, 64, 96) if teacher.front_end == "wave" else (32, 48, 64, 96)),
        ),
        frame_strides=(1, 2),
        widths=_at_most(teacher.width, (80, 112, 160), geometry.position_groups),
        heads=_at_most(max(teacher.heads), (2,)),
        ffn_dims=_at_most(max(teacher.ffn_dims), (256,)),
        kept_layers=tuple(sorted(kept, key=lambda layers: (len(layers), layers))),
    )


def _default(teacher: Architecture, geometry: Geometry) -> SearchSpace:
    """From a small share of the teacher up to the teacher itself, and broadcast blocks of all sizes, with layers and without.
    Depths lie closer together where they are small."""
    depth = teacher.depth
    return SearchSpace(
        name="default",
        front_widths=_fronts(
            teacher,
            wave=_parts(teacher.front_width, (1 / 4, 1 / 2, 3 / 4, 1)),
            mel=_parts(teacher.front_width, (1 / 4, 1 / 2, 1)),
            bc=BC_WIDTHS,
        ),
        frame_strides=(1, 2),
        widths=_parts(teacher.width, (3 / 8, 1 / 2, 5 / 8, 3 / 4, 1), geometry.position_groups),
        heads=_parts(max(teacher.heads), (1 / 4, 1 / 2, 3 / 4, 1)),
        ffn_dims=_parts(max(teacher.ffn_dims), (1 / 4, 1 / 2, 3 / 4, 1)),
        kept_layers=((), *_kept_layers(depth, (1, 2, 3, 4, *_parts(depth, (1 / 4, 1 / 2, 3 / 4, 1))))),
    )


CATALOG: dict[str, SpaceMaker] = {"default": _default, "edge": _edge, "edge-96": _edge_96, "paper": _paper}


def find_space(name: str, teacher: Architecture, geometry: Geometry) -> SearchSpace:
    """The space `name`, made from a teacher's own architecture and geometry. Raises ValueError when there is none."""
    if name not in CATALOG:
        raise ValueError(f"there is no space `{name}`; the known ones are {', '.join(sorted(CATALOG))}")
    return CATALOG[name](teacher, geometry)


def _fronts(
    teacher: Architecture, *, wave: tuple[int, ...], mel: tuple[int, ...], bc: tuple[int, ...] = ()
) -> dict[FrontEnd, tuple[int, ...]]:
    """The widths of the front ends that a teacher's students may have: a Whisper's hear log-mels alone."""
    fronts: dict[FrontEnd, tuple[int, ...]] = {"wave": wave if teacher.front_end == "wave" else (), "mel": mel, "bc": bc}
    return {front: widths for front, widths in fronts.items() if widths}


def _parts(whole: int, shares: Iterable[float], step: int = 1) -> tuple[int, ...]:
    """Shares of a whole, rounded to multiples of `step`, at least one step."""
    return tuple(sorted({max(step, round(whole * share / step) * step) for share in shares}))


def _at_most(limit: int, values: Iterable[int], step: int = 1) -> tuple[int, ...]:
    """The values cut to a limit and down to multiples of `step`, at least one step."""
    return tuple(sorted({max(step, min(limit, value) // step * step) for value in values}))


def _kept_layers(layers: int, depths: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    """For each depth up to `layers`: the first ones, some spread evenly from the first to the last, the last of equal runs; all
    sets where there are no more than three."""
    kept: set[tuple[int, ...]] = set()
    for depth in {min(depth, layers) for depth in depths}:
        if comb(layers, depth) <= MOST_WHOLE:
            kept.update(combinations(range(1, layers + 1), depth))
        kept.add(tuple(range(1, depth + 1)))
        kept.add(tuple(1 + i * (layers - 1) // max(1, depth - 1) for i in range(depth)))
        kept.add(tuple((i + 1) * layers // depth for i in range(depth)))
    return tuple(sorted(kept, key=lambda layers: (len(layers), layers)))
