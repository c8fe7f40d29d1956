"""The model's proposals: against hypervolumes by brute force, and against random ones on a function of the sizes."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.search import Searcher

from nas.proposals.searcher import Hooks, StudySearcher
from nas.proposals.surrogate import MARGIN, expected_improvement, features, modelled, most_promising, posterior, to_unit
from nas.study.candidates import Candidate, State, values_of
from nas.study.config import Sampler
from nas.study.pareto import hypervolume
from search_spaces.architecture import Architecture
from search_spaces.space import Mutation, RandomChooser, SearchSpace, front_alone

SPACE = SearchSpace(
    name="sizes",
    front_widths={"wave": (16, 32, 64), "mel": (16, 32)},
    frame_strides=(1, 2),
    widths=(32, 64, 128),
    heads=(2, 4),
    ffn_dims=(64, 128),
    kept_layers=((1,), (1, 2), (2, 4), (1, 2, 3, 4)),
)


def latency(a: Architecture) -> float:
    return 0.01 * a.front_width + a.depth * a.width / 64 / a.frame_stride


def equally_long(_: Architecture) -> float:
    return 1.0


def scores(a: Architecture) -> dict[str, float]:
    """Errors that fall with sizes, each with other ones."""
    keyword = 40 - 4 * np.log2(a.width / 32) - 3 * a.depth + 4 * a.frame_stride
    speaker = 30 - 2 * np.log2(a.front_width / 16) - 3 * (a.front_end == "mel") - np.log2(a.width / 32)
    return {"keyword_error": float(keyword), "eer": float(speaker), "latency_ms": latency(a)}


def members(count: int, seed: int = 0) -> list[Architecture]:
    chooser = RandomChooser(random.Random(seed))
    return [*{a.key: a for a in (SPACE.architecture(chooser) for _ in range(3 * count))}.values()][:count]


def candidate(number: int, architecture: Architecture, rung: int = 1, state: State = "complete") -> Candidate:
    return Candidate(number=number, architecture=architecture, state=state, rung=rung, scores=scores(architecture))


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_expected_improvement_is_the_mean_hypervolume_that_a_draw_would_add(seed: int) -> None:
    rng = np.random.default_rng(seed)
    front, expected, deviations = rng.random((6, 3)), rng.random((4, 3)), rng.uniform(0.01, 0.05, (4, 2))
    every = np.vstack([front, expected])
    low, high = every.min(0) - MARGIN * np.ptp(every, 0), every.max(0) + MARGIN * np.ptp(every, 0)
    drawn = expected[:, None] + np.pad(deviations, ((0, 0), (0, 1)))[:, None] * rng.standard_normal((4, 60, 3))
    drawn = np.maximum(drawn, low)  # the box ends there
    added = [[hypervolume(np.vstack([front, point]), high) - hypervolume(front, high) for point in each] for each in drawn]
    shares = np.mean(added, 1) / np.prod(high - low)
    assert np.abs(expected_improvement(front, expected, deviations) - shares).max() < 0.02


def test_the_model_learns_a_smooth_function_and_is_less_sure_far_from_what_it_saw() -> None:
    rows = np.random.default_rng(0).random((40, 2))
    new = np.vstack([rows[:5], [[0.5, 0.5], [3.0, 3.0]]])

    def smooth(x: np.ndarray) -> np.ndarray:
        return np.asarray(np.sin(3 * x[:, 0]) + x[:, 1] ** 2)

    mean, deviation = (column[:, 0] for column in posterior(rows, smooth(rows)[:, None], new))
    assert np.abs(mean - smooth(new))[:6].max() < 0.1
    assert deviation[-1] > 3 * deviation[:-1].max()


def test_equal_values_are_expected_to_stay_equal() -> None:
    mean, deviation = posterior(np.eye(4), np.full((4, 2), 7.0), np.zeros((1, 4)))
    assert mean == pytest.approx(7.0) and np.isfinite(deviation).all()


def test_nothing_without_a_score_is_modelled_and_the_furthest_trained_come_last() -> None:
    a, b, c, d = members(4)
    lost = Candidate(number=3, architecture=d, state="complete", rung=2, scores={"keyword_error": float("nan")})
    tried = [candidate(0, a, rung=2), candidate(1, b, state="stopped"), Candidate(number=2, architecture=c, state="failed"), lost]
    assert [c.number for c in modelled(tried)] == [1, 0]


def test_students_without_layers_are_modelled_beside_the_others() -> None:
    """What they lack says nothing of them, and does not push the others together."""
    others, alone = members(10), [front_alone("bc", 16), front_alone("bc", 64)]
    rows = to_unit([features(a, 1) for a in [*others, *alone]])
    assert np.isfinite(rows).all() and np.abs(rows).max() <= 1 and len(np.unique(rows[-2:], axis=0)) == 2
    units = [float(np.log2(np.mean(a.ffn_dims))) for a in others]
    column = next(i for i, values in enumerate(zip(*(features(a, 1) for a in others), strict=True)) if list(values) == units)
    assert np.ptp(rows[:10, column]) == pytest.approx(2.0) and not rows[10:, column].any()
    scored = modelled([candidate(i, a) for i, a in enumerate([*others, alone[0]])])
    assert most_promising([*members(20, seed=1), alone[1]], [], scored, latency, equally_long)


def test_what_runs_is_not_proposed_again_in_another_guise() -> None:
    """A twin of what is expected to be reached already adds nothing."""
    scored = modelled([candidate(i, a) for i, a in enumerate(members(24))])
    pool = members(60, seed=1)
    first = most_promising(pool, [], scored, latency, equally_long)
    assert most_promising(pool, [first], scored, latency, equally_long) != first


def test_a_mutation_is_a_member_that_shares_most_choices() -> None:
    parent, rng = members(1)[0], random.Random(0)
    children = [SPACE.architecture(Mutation(parent, rng)) for _ in range(200)]
    assert all(child in SPACE for child in children)
    assert 0.5 < np.mean([child.width == parent.width for child in children]) < 1
    assert any(child.depth != parent.depth for child in children)


def found(sampler: Sampler, seed: int, candidates: int) -> float:
    """Hypervolume of a search on the function."""
    begun = dict[int, Architecture]()

    def started(number: int, architecture: Architecture) -> dict[str, int]:
        begun[number] = architecture
        return {"number": number}

    hooks = Hooks(
        refusal=lambda _: None,
        affordable=lambda _: True,
        started=started,
        refused=lambda *_: None,
        finished=lambda number: candidate(number, begun[number]),
        latency=latency,
        seconds=equally_long,
    )
    searching = StudySearcher(SPACE, hooks, history=(), seed=seed, limit=candidates, sampler=sampler)
    trial = 0
    while searching.suggest(str(trial)) != Searcher.FINISHED:
        searching.on_trial_complete(str(trial))
        trial += 1
    return hypervolume(np.array([values_of(scores(a)) for a in begun.values()]), np.array([45.0, 31.0, 9.0]))


def test_a_modelled_search_finds_more_than_a_random_one_with_twice_the_candidates() -> None:
    guided = [found("gp", seed, candidates=20) for seed in range(3)]
    assert np.median(guided) > np.median([found("random", seed, candidates=40) for seed in range(9)])
