"""The searcher's contract with Optuna and with the driver, without Ray's processes."""

import random
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from nas.proposals.searcher import MOST_MODELLED, Hooks, StudySearcher, as_trial, most_telling
from nas.study.candidates import Candidate, State, values_of
from nas.study.config import Sampler
from nas.study.pareto import non_dominated
from search_spaces.architecture import Architecture
from search_spaces.space import RandomChooser, SearchSpace

SPACE = SearchSpace(
    name="little",
    front_widths={"wave": (8, 16), "mel": (8,)},
    frame_strides=(1, 2),
    widths=(16, 32),
    heads=(1, 2),
    ffn_dims=(16, 32),
    kept_layers=((1,), (2,), (1, 2)),
)


class Driver:
    """Records what the searcher tells, and answers as it is told to."""

    def __init__(self, refuse_width: int | None = None, affordable: int = 10**6, state: State = "complete") -> None:
        self.refuse_width, self.left, self.state = refuse_width, affordable, state
        self.begun: dict[int, Architecture] = {}
        self.refusals: list[Architecture] = []

    def hooks(self) -> Hooks:
        return Hooks(
            refusal=lambda a: "too wide" if a.width == self.refuse_width else None,
            affordable=lambda a: self.left > 0,
            started=self.started,
            refused=lambda number, a, reason: self.refusals.append(a),
            finished=self.finished,
            latency=lambda a: 1.0,
            seconds=lambda a: 1.0,
        )

    def started(self, number: int, architecture: Architecture) -> dict[str, Any]:
        self.left -= 1
        self.begun[number] = architecture
        return {"task": str(number)}

    def finished(self, number: int) -> Candidate:
        scores = {"keyword_error": float(number), "eer": float(-number), "latency_ms": 1.0} if self.state == "complete" else {}
        return Candidate(number=number, architecture=self.begun[number], state=self.state, scores=scores, rung=bool(scores))


def searcher(driver: Driver, history: list[Candidate] | None = None, limit: int | None = None, seed: int = 0) -> StudySearcher:
    return StudySearcher(SPACE, driver.hooks(), history=history or [], seed=seed, limit=limit)


def run(searching: StudySearcher, most: int = 10**6) -> int:
    """One worker, until the searcher ends; returns how many were begun."""
    for count in range(most):
        suggestion = searching.suggest(str(count))
        if suggestion == Searcher.FINISHED:
            return count
        searching.on_trial_complete(str(count), {})
    return most


def test_every_proposal_is_told_back_as_what_it_was() -> None:
    searching = searcher(driver := Driver(refuse_width=32), limit=12)
    assert run(searching) == 12
    states = [trial.state for trial in searching.study.trials]
    assert states.count(TrialState.COMPLETE) == 12
    assert TrialState.RUNNING not in states
    assert driver.refusals and all(a.width == 32 for a in driver.refusals)
    assert all(a.width == 16 for a in driver.begun.values())


def test_failed_and_stopped_candidates_are_never_complete_for_the_sampler() -> None:
    for state, told in (("failed", TrialState.FAIL), ("stopped", TrialState.PRUNED), ("refused", TrialState.FAIL)):
        searching = searcher(Driver(state=state), limit=3)  # type: ignore[arg-type]
        assert run(searching) == 3
        assert {trial.state for trial in searching.study.trials} <= {told, TrialState.FAIL}


@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_every_sampler_proposes_members_and_repeats_with_its_seed(sampler: Sampler) -> None:
    def proposals(seed: int) -> list[Architecture]:
        driver = Driver()
        searching = StudySearcher(SPACE, driver.hooks(), history=[], seed=seed, limit=20, sampler=sampler)
        assert run(searching) == 20
        return list(driver.begun.values())

    first = proposals(1)
    assert all(architecture in SPACE for architecture in first) and len({a.key for a in first}) == 20
    assert proposals(1) == first != proposals(2)


def test_what_is_named_is_tried_first_and_once() -> None:
    rng = RandomChooser(random.Random(3))
    named = [SPACE.architecture(rng) for _ in range(3)]
    driver = Driver()
    searching = StudySearcher(SPACE, driver.hooks(), history=[], seed=0, limit=6, first=[*named, named[0]])
    run(searching)
    assert list(driver.begun.values())[:3] == named
    past = [Candidate(number=0, architecture=named[0], state="stopped", scores={}, rung=1)]
    resumed = StudySearcher(SPACE, (again := Driver()).hooks(), history=past, seed=0, limit=3, first=named)
    run(resumed)
    assert list(again.begun.values()) == named[1:]  # with the one of the past that makes three


def test_no_architecture_is_begun_twice_and_a_small_space_ends() -> None:
    driver = Driver()
    tiny = replace(SPACE, front_widths={"mel": (8,)}, frame_strides=(1,), widths=(16,), kept_layers=((1,),))
    searching = StudySearcher(tiny, driver.hooks(), history=[], seed=0, limit=None)
    assert run(searching) == tiny.size == 4
    assert len({a.key for a in driver.begun.values()}) == 4


def test_what_cannot_be_afforded_waits_while_something_runs_and_ends_when_nothing_does() -> None:
    searching = searcher(Driver(affordable=1))
    assert isinstance(searching.suggest("a"), dict)
    assert searching.suggest("b") is None
    searching.on_trial_complete("a", {})
    assert searching.suggest("b") == Searcher.FINISHED


def test_a_sampler_is_not_asked_in_vain() -> None:
    searching = searcher(Driver(affordable=1))
    searching.suggest("a")
    asked = len(searching.study.trials)
    assert [searching.suggest("b") for _ in range(5)] == [None] * 5
    assert len(searching.study.trials) == asked


def test_what_was_interrupted_goes_on_where_nothing_else_is_left() -> None:
    only = replace(SPACE, front_widths={"mel": (8,)}, frame_strides=(1,), widths=(16,), heads=(1,), kept_layers=((1,),))
    chosen = only.architecture(RandomChooser(random.Random(0)))
    past = [
        Candidate(number=0, architecture=replace(chosen, ffn_dims=(16,)), state="stopped"),
        Candidate(number=1, architecture=replace(chosen, ffn_dims=(32,)), state="running", rung=1),
    ]
    driver = Driver()
    assert run(StudySearcher(only, driver.hooks(), history=past, seed=0, limit=None)) == 1
    assert list(driver.begun) == [1]


def test_a_worker_that_died_frees_its_place() -> None:
    searching = searcher(driver := Driver(state="failed"))
    searching.suggest("a")
    searching.on_trial_complete("a", error=True)
    assert not searching.running and searching.study.trials[0].state == TrialState.FAIL
    assert isinstance(searching.suggest("b"), dict) and len(driver.begun) == 2


def test_what_is_to_be_tried_again_comes_before_anything_else_and_counts_once() -> None:
    """Also behind the last candidate: the search does not end while one is to be tried again."""

    class Dying(Driver):
        deaths = 2

        def finished(self, number: int) -> Candidate | None:  # type: ignore[override]
            self.deaths -= 1
            return None if self.deaths >= 0 else super().finished(number)

    searching = searcher(driver := Dying(), limit=2)
    assert isinstance(searching.suggest("a"), dict) and isinstance(searching.suggest("b"), dict)
    assert searching.suggest("c") is None  # waits: one of both may die
    searching.on_trial_complete("a", error=True)
    assert searching.suggest("c") == {"task": "0"} and searching.suggest("d") is None
    searching.on_trial_complete("c", error=True)
    assert searching.suggest("d") == {"task": "0"}
    for trial_id in "bd":
        searching.on_trial_complete(trial_id, {})
    assert searching.suggest("e") == Searcher.FINISHED and list(driver.begun) == [0, 1]
    assert [trial.state for trial in searching.study.trials] == [TrialState.COMPLETE] * 2


def test_the_same_seed_proposes_the_same_and_another_seed_does_not() -> None:
    def proposals(seed: int) -> list[str]:
        driver = Driver()
        run(searcher(driver, limit=14, seed=seed))
        return [a.key for a in driver.begun.values()]

    assert proposals(1) == proposals(1) != proposals(2)


def history() -> list[Candidate]:
    chooser = RandomChooser(random.Random(0))
    keys: dict[str, Architecture] = {}
    while len(keys) < 6:
        architecture = SPACE.architecture(chooser)
        keys[architecture.key] = architecture
    states: list[State] = ["complete", "complete", "refused", "failed", "stopped", "running"]
    scores = {"keyword_error": 5.0, "eer": 10.0, "latency_ms": 1.5}
    return [
        Candidate(number=i, architecture=a, state=state, scores=scores if state == "complete" else {})
        for i, (a, state) in enumerate(zip(keys.values(), states))
    ]


def test_a_history_is_rebuilt_and_what_was_interrupted_comes_first() -> None:
    past = history()
    searching = searcher(driver := Driver(), history=past, limit=5)
    states = [trial.state for trial in searching.study.trials]
    assert states.count(TrialState.COMPLETE) == 2 and states.count(TrialState.FAIL) == 2 and states.count(TrialState.PRUNED) == 1
    assert isinstance(searching.suggest("a"), dict)
    assert driver.begun == {5: past[5].architecture}  # under its number
    searching.on_trial_complete("a", {})
    assert searching.suggest("b") == Searcher.FINISHED  # four of five were begun before the interruption


def test_a_long_search_forgets_all_but_the_best_and_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.proposals.searcher.MOST_MODELLED", 8)
    searching = searcher(driver := Driver())
    assert isinstance(searching.suggest("0"), dict)
    for trial in range(1, 60):
        assert isinstance(searching.suggest(str(trial)), dict)
        trials = searching.study.get_trials(deepcopy=False)
        assert len(trials) <= 2 * 8 + 1
        assert sum(found.state == TrialState.RUNNING for found in trials) == 2
        if trial < 59:
            searching.on_trial_complete(str(trial - 1), {})
    assert len({*driver.begun.values()}) == 60


def test_what_is_told_of_many_has_their_front() -> None:
    rng = random.Random(0)
    every = [
        replace(history()[0], number=n, scores={"keyword_error": rng.random(), "eer": rng.random(), "latency_ms": 1.0}, rung=1)
        for n in range(500)
    ]
    every[-1] = replace(every[-1], state="refused", scores={})
    told = most_telling(every)
    assert len(told) == MOST_MODELLED and every[-1] not in told and told[-80:] == every[-81:-1]
    front = non_dominated(np.array([values_of(c.scores) for c in every[:-1]]))
    assert {c.number for c, best in zip(every[:-1], front, strict=True) if best} <= {c.number for c in told}
    assert most_telling(every[:100]) == every[:100]


def test_a_recorded_candidate_is_a_trial_that_the_space_reads_back() -> None:
    for candidate in history():
        frozen = as_trial(SPACE, candidate)
        assert SPACE.architecture(optuna.trial.FixedTrial(frozen.params)) == candidate.architecture
        if candidate.state == "complete":
            assert frozen.values == values_of(candidate.scores)
