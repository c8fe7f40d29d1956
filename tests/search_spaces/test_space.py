import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, TypeVar

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.architecture import Architecture, Geometry
from search_spaces.catalog import CATALOG, find_space, paper_student, published_students
from search_spaces.cost import cost
from search_spaces.space import Mutation, Nearest, RandomChooser, Replay, SearchSpace, front_alone

T = TypeVar("T", str, int)


def teacher(depth: int, width: int, heads: int, ffn_dim: int, front_width: int) -> Architecture:
    return Architecture(
        front_end="wave",
        front_width=front_width,
        frame_stride=1,
        width=width,
        heads=(heads,) * depth,
        ffn_dims=(ffn_dim,) * depth,
        kept_layers=tuple(range(1, depth + 1)),
    )


MINI_GEOMETRY = Geometry(
    head_dim=64,
    conv_dims=(32, 64, 128, 128, 128, 128, 128),
    conv_bias=True,
    front_norm="layer",
    norm_order="post",
    position_kernel=64,
    position_groups=16,
    normalize_input=True,
)
BASE_GEOMETRY = replace(MINI_GEOMETRY, conv_dims=(512,) * 7, conv_bias=False, front_norm="group", position_kernel=128)
LARGE_GEOMETRY = replace(BASE_GEOMETRY, conv_bias=True, front_norm="layer", norm_order="pre")
TINY_GEOMETRY = replace(MINI_GEOMETRY, head_dim=8, conv_dims=(4,) * 7, position_groups=4)
WHISPER_GEOMETRY = replace(
    LARGE_GEOMETRY, family="whisper", conv_dims=(512, 512), position_kernel=0, position_groups=1, position_table=1500
)
TEACHERS = {
    "mini": (teacher(6, 256, 4, 768, 128), MINI_GEOMETRY),
    "base": (teacher(12, 768, 12, 3072, 512), BASE_GEOMETRY),
    "large": (teacher(24, 1024, 16, 4096, 512), LARGE_GEOMETRY),
    "tiny": (teacher(1, 8, 1, 6, 4), TINY_GEOMETRY),
    "whisper": (replace(teacher(3, 512, 8, 2048, 512), front_end="mel"), WHISPER_GEOMETRY),
}
MINI, BASE = TEACHERS["mini"][0], TEACHERS["base"][0]
SPACE = SearchSpace(
    name="little",
    front_widths={"wave": (4, 8), "mel": (6,)},
    frame_strides=(1, 2),
    widths=(16, 32),
    heads=(1, 2),
    ffn_dims=(8, 16, 24),
    kept_layers=((1,), (1, 2), (1, 6)),
)
WITH_BC = replace(SPACE, front_widths={"wave": (4,), "bc": (8, 64)}, kept_layers=((), *SPACE.kept_layers))
BC_ALONE = replace(SPACE, front_widths={"bc": (8, 64)}, kept_layers=((),))


class Digits:
    """Answers with the next digit of a mixed-radix number: all digits enumerate a space."""

    def __init__(self, digits: list[int]) -> None:
        self.digits, self.radices = digits, list[int]()

    def suggest_categorical(self, name: str, choices: Sequence[T]) -> T:
        place = len(self.radices)
        self.radices.append(len(choices))
        if place == len(self.digits):
            self.digits.append(0)
        return choices[self.digits[place]]


def members(space: SearchSpace) -> Iterator[Architecture]:
    """Every path through the questions, depth first: an enumeration that knows nothing of the fields."""
    digits: list[int] = []
    while True:
        chooser = Digits(digits)
        yield space.architecture(chooser)
        while digits and digits[-1] == chooser.radices[len(digits) - 1] - 1:
            digits.pop()
        if not digits:
            return
        digits[-1] += 1


def without_bc(space: SearchSpace) -> SearchSpace:
    fronts = {front: widths for front, widths in space.front_widths.items() if front != "bc"}
    return replace(space, front_widths=fronts, kept_layers=tuple(filter(None, space.kept_layers)))


def spaces() -> list[Any]:
    return [pytest.param(CATALOG[name](*TEACHERS[of]), *TEACHERS[of], id=f"{name}-{of}") for name, of in product(CATALOG, TEACHERS)]


def weights(architecture: Architecture, geometry: Geometry) -> int:
    return cost(architecture, geometry, keywords=12, samples=16_080).params


def test_size_is_the_number_of_members() -> None:
    found = list(members(SPACE))
    assert len(found) == len(set(found)) == SPACE.size == 3 * 2 * 2 * (6 + 2 * 36)


def test_no_two_members_without_layers_are_the_same() -> None:
    found = list(members(WITH_BC))
    assert len(found) == len(set(found)) == len({a.key for a in found}) == WITH_BC.size == 3 * 2 * 2 * (6 + 2 * 36) + 2
    assert [a.front_width for a in found if not a.depth] == [8, 64]
    assert list(members(BC_ALONE)) == [front_alone("bc", 8), front_alone("bc", 64)] and BC_ALONE.size == 2


def test_what_does_not_matter_without_layers_is_not_asked() -> None:
    assert Replay(front_alone("bc", 64)).answers == {"front_end": "bc", "bc.front_width": 64, "bc.depth": 0}
    assert front_alone("bc", 64) not in SPACE and front_alone("bc", 16) not in WITH_BC


def test_mutations_go_between_students_with_and_without_layers() -> None:
    alone, source = front_alone("bc", 64), random.Random(0)
    children = [WITH_BC.architecture(Mutation(alone, source)) for _ in range(300)]
    layered = next(child for child in children if child.front_end == "wave")
    assert all(child in WITH_BC for child in children) and {child.front_end for child in children} == {"wave", "bc"}
    back = [WITH_BC.architecture(Mutation(layered, source)) for _ in range(300)]
    assert any(not child.depth for child in back) and all(child in WITH_BC for child in back)
    kept = [child.depth for child in back if child.front_end == "bc"]
    assert kept.count(layered.depth) > len(kept) / 2  # another front end keeps what it can


@pytest.mark.parametrize("space", [WITH_BC, BC_ALONE], ids=["with others", "alone"])
def test_nearest_member_of_any_student(space: SearchSpace) -> None:
    for member in members(space):
        assert space.architecture(Nearest(member)) == member
    for stranger in (MINI, front_alone("bc", 72)):
        assert space.architecture(Nearest(stranger)) in space
        assert SPACE.architecture(Nearest(stranger)) in SPACE


def test_size_of_a_named_space() -> None:
    space = find_space("default", *TEACHERS["tiny"])
    assert len(set(members(space))) == space.size


@pytest.mark.parametrize("space", [SPACE, WITH_BC, BC_ALONE])
def test_every_member_replays_to_itself(space: SearchSpace) -> None:
    for architecture in members(space):
        assert space.architecture(Replay(architecture)) == architecture
        assert architecture in space


@pytest.mark.parametrize("space", [SPACE, WITH_BC, BC_ALONE])
def test_extremes_bound_every_member(space: SearchSpace) -> None:
    counts = [weights(architecture, MINI_GEOMETRY) for architecture in members(space)]
    assert weights(space.smallest(MINI_GEOMETRY), MINI_GEOMETRY) == min(counts)
    assert weights(space.largest(MINI_GEOMETRY), MINI_GEOMETRY) == max(counts)


@given(st.randoms(use_true_random=False), st.sampled_from(sorted(CATALOG)), st.sampled_from(sorted(TEACHERS)))
def test_random_members_replay_and_lie_between_the_extremes(source: random.Random, name: str, of: str) -> None:
    original, geometry = TEACHERS[of]
    space = find_space(name, original, geometry)
    architecture = space.architecture(RandomChooser(source))
    assert architecture in space
    assert space.architecture(Replay(architecture)) == architecture
    compared = (space.smallest(geometry), architecture, space.largest(geometry))
    if of == "whisper":  # its kernel of stride 2 is the longer one
        compared = tuple(replace(a, frame_stride=1) for a in compared)
    smallest, own, largest = (weights(a, geometry) for a in compared)
    assert smallest <= own <= largest


def test_the_same_seed_gives_the_same_members() -> None:
    space = find_space("default", MINI, MINI_GEOMETRY)
    one, other = (RandomChooser(random.Random(3)) for _ in range(2))
    assert [space.architecture(one) for _ in range(5)] == [space.architecture(other) for _ in range(5)]


def test_an_optuna_trial_chooses_and_its_parameters_are_the_replays_answers() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        trial = study.ask()
        architecture = WITH_BC.architecture(trial)
        assert trial.params == Replay(architecture).answers
        assert WITH_BC.architecture(optuna.trial.FixedTrial(trial.params)) == architecture


def test_names_of_the_parameters() -> None:
    a = Architecture(front_end="mel", front_width=6, frame_stride=1, width=16, heads=(1, 2), ffn_dims=(8, 24), kept_layers=(1, 6))
    assert list(Replay(a).answers.items()) == [
        ("front_end", "mel"),
        ("mel.front_width", 6),
        ("depth", 2),
        ("frame_stride", 1),
        ("width", 16),
        ("depth2.kept_layers", "1-6"),
        ("layer1.heads", 1),
        ("layer1.ffn_dim", 8),
        ("layer2.heads", 2),
        ("layer2.ffn_dim", 24),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 96}, "space `little` has no width 96; allowed are 16, 32"),
        ({"front_width": 6}, "no wave.front_width 6; allowed are 4, 8"),
        ({"kept_layers": (2, 3)}, "no depth2.kept_layers 2-3; allowed are 1-2, 1-6"),
        ({"heads": (1, 3)}, "no layer2.heads 3; allowed are 1, 2"),
        ({"heads": (1,) * 3, "ffn_dims": (8,) * 3, "kept_layers": (1, 2, 3)}, "no depth 3; allowed are 1, 2"),
    ],
)
def test_a_stranger_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    member = SPACE.largest(MINI_GEOMETRY)
    stranger = replace(member, **{"front_end": "wave", "front_width": 4, **change})
    assert stranger not in SPACE
    with pytest.raises(ValueError, match=message):
        SPACE.architecture(Replay(stranger))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (32, 16)}, r"the widths are \(32, 16\)"),
        ({"heads": ()}, r"the heads are \(\)"),
        ({"front_widths": {"mel": (8, 8)}}, "the front_widths of mel"),
        ({"front_widths": {}}, "the front ends are"),
        ({"kept_layers": ()}, "the depths are"),
        ({"kept_layers": ((1, 6), (1, 2))}, "the kept_layers of depth 2"),
        ({"kept_layers": ((),)}, "the depths of wave"),
    ],
)
def test_a_space_of_empty_or_unordered_choices_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPACE, **change)


@pytest.mark.parametrize(("space", "original", "geometry"), spaces())
def test_nothing_in_a_named_space_exceeds_the_teacher(space: SearchSpace, original: Architecture, geometry: Geometry) -> None:
    assert all(max(widths) <= original.front_width for front, widths in space.front_widths.items() if front != "bc")
    assert max(space.widths) <= original.width
    assert max(space.heads) <= original.heads[0]
    assert max(space.ffn_dims) <= original.ffn_dims[0]
    assert max(map(max, filter(None, space.kept_layers))) <= original.depth
    assert all(width % geometry.position_groups == 0 for width in space.widths)


@pytest.mark.parametrize("of", ["mini", "base", "large", "whisper"])
def test_the_teacher_is_the_largest_of_the_default_space(of: str) -> None:
    original, geometry = TEACHERS[of]
    space = find_space("default", original, geometry)
    assert without_bc(space).largest(geometry) == original
    largest = space.largest(geometry)  # its layers, maybe behind other convolutions than its own
    assert replace(largest, front_end=original.front_end, front_width=original.front_width) == original


def test_the_ends_of_a_whisper_s_space_have_the_most_and_the_fewest_steps() -> None:
    """Its convolution of stride 2 has the longer kernel, and so the more weights."""
    original, geometry = TEACHERS["whisper"]
    space = without_bc(find_space("edge", original, geometry))
    smallest, largest = space.smallest(geometry), space.largest(geometry)
    assert (smallest.frame_stride, largest.frame_stride) == (2, 1)
    macs = [cost(corner, geometry, 12, 16_080).total_macs for corner in (*space.corners(0), *space.corners(-1))]
    assert [cost(end, geometry, 12, 16_080).total_macs for end in (smallest, largest)] == [min(macs), max(macs)]


@pytest.mark.parametrize("of", TEACHERS)
def test_the_default_space_holds_the_teacher_and_the_papers_student(of: str) -> None:
    original, geometry = TEACHERS[of]
    space = find_space("default", original, geometry)
    assert original in space
    assert paper_student(original) in space
    assert paper_student(original) in find_space("paper", original, geometry)


def test_bounds_of_the_default_space_of_the_bundled_teacher() -> None:
    space = find_space("default", MINI, MINI_GEOMETRY)
    assert space.size > 10**6
    assert space.smallest(MINI_GEOMETRY) == front_alone("bc", 32)
    assert 80_000 < weights(without_bc(space).smallest(MINI_GEOMETRY), MINI_GEOMETRY) < 120_000


@pytest.mark.parametrize("of", ["mini", "base", "large", "whisper"])
def test_the_edge_space_is_small_whatever_the_teacher(of: str) -> None:
    original, geometry = TEACHERS[of]
    space = find_space("edge", original, geometry)
    assert 10_000 < weights(space.smallest(geometry), geometry) < 20_000
    assert 60_000 < weights(without_bc(space).smallest(geometry), geometry) < 120_000
    assert weights(space.largest(geometry), geometry) < 6_000_000


def test_the_papers_student_has_the_teachers_convolutions_and_first_two_layers() -> None:
    student = paper_student(BASE)
    assert student == teacher(2, 768, 12, 3072, 512)
    assert paper_student(TEACHERS["tiny"][0]) == TEACHERS["tiny"][0]
    for of, layers in (("mini", 1), ("whisper", 1), ("large", 4)):
        assert paper_student(TEACHERS[of][0]).kept_layers == tuple(range(1, layers + 1))


def test_students_of_a_whisper_hear_log_mels_alone() -> None:
    for name in CATALOG:
        space = find_space(name, *TEACHERS["whisper"])
        assert "mel" in space.front_widths and "wave" not in space.front_widths and space.size > 50


@pytest.mark.parametrize("of", TEACHERS)
def test_broadcast_blocks_stand_in_the_named_spaces_with_layers_and_without(of: str) -> None:
    for name, widths in (("edge", (32, 64, 96)), ("default", (32, 48, 64, 96, 192, 256))):
        space = find_space(name, *TEACHERS[of])
        assert space.front_widths["bc"] == widths and all(front_alone("bc", width) in space for width in widths)
    assert not any("bc" in find_space(name, *TEACHERS[of]).front_widths for name in ("paper", "edge-96"))


def test_kept_layers_are_first_spread_or_last_of_equal_runs() -> None:
    kept = find_space("paper", BASE, BASE_GEOMETRY).kept_layers
    names = ["-".join(map(str, layers)) for layers in kept]
    assert " ".join(names) == "1 12 1-2 1-12 6-12 1-2-3 1-6-12 4-8-12 1-2-3-4 1-4-8-12 3-6-9-12"


def test_of_three_layers_every_set_is_offered() -> None:
    kept = find_space("edge", *TEACHERS["whisper"]).kept_layers
    assert " ".join("-".join(map(str, layers)) for layers in kept if layers) == "1 2 3 1-2 1-3 2-3 1-2-3" and () in kept


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no space `tiny`; the known ones are default, edge, edge-96, paper"):
        find_space("tiny", MINI, MINI_GEOMETRY)


def test_edge_96_is_a_full_factorial_of_small_students() -> None:
    for of in ("mini", "whisper"):
        space = find_space("edge-96", *TEACHERS[of])
        chooser = RandomChooser(random.Random(0))
        assert space.size == 96 == len({space.architecture(chooser).key for _ in range(2000)})


@pytest.mark.parametrize("of", ["mini", "base", "large"])
def test_published_students_are_in_proportion_to_the_teacher(of: str) -> None:
    original, geometry = TEACHERS[of]
    students = published_students(original)
    assert students["paper's student"] == paper_student(original)
    light = students["LightHuBERT Small"]
    assert light.kept_layers == original.kept_layers and light.width == original.width // 2
    if of == "base":  # as in its Table 1: 384 channels, 6 heads, 1,536 units, 12 layers
        assert (light.width, light.heads[0], light.ffn_dims[0], light.depth) == (384, 6, 1536, 12)
        assert 26e6 < weights(light, geometry) < 29e6


@pytest.mark.parametrize("name", CATALOG)
@given(st.integers(0, 999))
def test_a_member_is_its_own_nearest_and_others_have_one(name: str, seed: int) -> None:
    space = find_space(name, MINI, MINI_GEOMETRY)
    member = space.architecture(RandomChooser(random.Random(seed)))
    assert space.architecture(Nearest(member)) == member
    for student in published_students(MINI).values():
        assert space.architecture(Nearest(student)) in space


def test_the_nearest_member_is_as_large_as_the_space_allows() -> None:
    space = find_space("edge", MINI, MINI_GEOMETRY)
    nearest = space.architecture(Nearest(paper_student(MINI)))
    assert nearest.kept_layers == (1,) and nearest.front_end == "wave" and nearest.width == max(space.widths)
    deep = space.architecture(Nearest(published_students(MINI)["LightHuBERT Small"]))
    assert deep.depth == max(space.depths) and deep.width == 128 and set(deep.heads) == {2} and set(deep.ffn_dims) == {256}


@pytest.mark.parametrize("name", CATALOG)
@pytest.mark.parametrize("of", ["mini", "base", "large"])
def test_the_largest_within_a_size_is_a_member_and_no_larger(name: str, of: str) -> None:
    original, geometry = TEACHERS[of]
    space = find_space(name, original, geometry)
    most, least = (weights(member, geometry) for member in (space.largest(geometry), space.smallest(geometry)))
    found = [
        space.largest_within(least + share * (most - least), original.front_end, lambda member: weights(member, geometry))
        for share in (0.1, 0.3, 1.1)
    ]
    assert all(member is None or member in space for member in found)
    sizes = [weights(member, geometry) if member else 0 for member in found]
    assert sizes == sorted(sizes) and found[2] is not None
    assert all(size <= least + share * (most - least) for size, share in zip(sizes, (0.1, 0.3, 1.1)))
    assert space.largest_within(0, original.front_end, lambda member: weights(member, geometry)) is None
