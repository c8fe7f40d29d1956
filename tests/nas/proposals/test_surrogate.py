"""The model's proposals: against hypervolumes by brute force, and against random ones on a function of the sizes. What it learns of
earlier studies saves trainings where they fit, and costs little where they do not."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.search import Searcher

from nas.proposals.earlier import FEWEST, hindsight
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


def found(sampler: Sampler, seed: int, candidates: int, earlier: Sequence[Sequence[Candidate]] = ()) -> float:
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
    searching = StudySearcher(SPACE, hooks, history=(), seed=seed, limit=candidates, sampler=sampler, earlier=earlier)
    trial = 0
    while searching.suggest(str(trial)) != Searcher.FINISHED:
        searching.on_trial_complete(str(trial))
        trial += 1
    return hypervolume(np.array([values_of(scores(a)) for a in begun.values()]), np.array([45.0, 31.0, 9.0]))


def test_a_modelled_search_finds_more_than_a_random_one_with_twice_the_candidates() -> None:
    guided = [found("gp", seed, candidates=20) for seed in range(3)]
    assert np.median(guided) > np.median([found("random", seed, candidates=40) for seed in range(9)])


def earlier(count: int = 30, seed: int = 9) -> list[Candidate]:
    """Of a study on other speech, where errors are twice as large and some ten points higher."""
    rng = np.random.default_rng(seed)
    others = []
    for number, architecture in enumerate(members(count, seed=seed)):
        values = {
            name: value if name == "latency_ms" else 2 * value + 10 + rng.normal() for name, value in scores(architecture).items()
        }
        others.append(replace(candidate(number, architecture), scores=values))
    return others


def unrelated(count: int = 30) -> list[Candidate]:
    """Of a study whose errors say nothing."""
    rng = random.Random(3)
    return [replace(c, scores={**c.scores, "keyword_error": rng.random(), "eer": rng.random()}) for c in earlier(count)]


def test_what_is_expected_is_in_the_order_of_the_errors() -> None:
    told = hindsight([earlier(), earlier(seed=5)])
    assert told is not None
    asked = members(40, seed=1)
    expected, errors = told(asked), np.array([list(scores(a).values())[:2] for a in asked])
    for error in range(2):
        assert np.corrcoef(expected[:, error], errors[:, error])[0, 1] > 0.9
        assert np.abs(expected[:, error]).max() < 5


def test_a_study_with_few_candidates_is_not_asked() -> None:
    assert hindsight([]) is None and hindsight([earlier(FEWEST - 1)]) is None


def test_a_search_that_learns_from_another_one_finds_as_much_with_fewer_trainings() -> None:
    cold, learnt = ([found("gp", seed, candidates=8, earlier=other) for seed in range(5)] for other in ((), (earlier(),)))
    assert np.median(learnt) > np.median(cold)


def test_a_study_that_does_not_fit_is_not_trusted() -> None:
    """Its predictions are a feature whose weight may be nothing."""
    cold, misled = ([found("gp", seed, candidates=20, earlier=other) for seed in range(5)] for other in ((), (unrelated(),)))
    assert np.median(misled) > 0.97 * np.median(cold)


def test_the_weight_of_what_is_told_is_the_likeliest() -> None:
    rng = np.random.default_rng(0)
    rows, new, told, told_new = rng.random((12, 2)), rng.random((30, 2)), rng.normal(size=(12, 1)), rng.normal(size=(30, 1))
    values, wanted = 3 * told, 3 * told_new[:, 0]
    mean, _ = posterior(np.hstack([rows, told]), values, np.hstack([new, told_new]), told=1)
    alone, _ = posterior(rows, values, new)
    assert np.abs(mean[:, 0] - wanted).mean() < 0.3 * np.abs(alone[:, 0] - wanted).mean()
    same = np.sin(3 * rows[:, :1])
    ignored, _ = posterior(np.hstack([rows, told]), same, np.hstack([new, told_new]), told=1)
    assert ignored[:, 0] == pytest.approx(posterior(rows, same, new)[0][:, 0], abs=0.05)
