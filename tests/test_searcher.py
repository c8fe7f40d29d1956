"""The searcher's contract with Optuna and with the driver, without Ray's processes."""

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from nas.candidates import Candidate, State
from nas.searcher import Hooks, StudySearcher, as_trial, values_of
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
        )

    def started(self, number: int, architecture: Architecture) -> dict[str, Any]:
        self.left -= 1
        self.begun[number] = architecture
        return {"task": str(number)}

    def finished(self, number: int, report: Mapping[str, Any] | None) -> Candidate:
        scores = {"keyword_error": float(number), "eer": float(-number), "latency_ms": 1.0} if self.state == "complete" else {}
        return Candidate(number=number, architecture=self.begun[number], state=self.state, scores=scores)


def searcher(driver: Driver, history: list[Candidate] | None = None, limit: int | None = None, seed: int = 0) -> StudySearcher:
    return StudySearcher(SPACE, driver.hooks(), history=history or [], seed=seed, limit=limit)


def run(searching: StudySearcher, most: int = 10**6) -> int:
    """One worker, until the searcher ends; returns how many were begun."""
    for count in range(most):
        suggestion = searching.suggest(str(count))
        if suggestion == Searcher.FINISHED:
            return count
        searching.on_trial_complete(str(count), {"report": json.dumps({})})
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
    searching.on_trial_complete("a", {"report": "{}"})
    assert searching.suggest("b") == Searcher.FINISHED


def test_a_worker_that_died_frees_its_place() -> None:
    searching = searcher(driver := Driver(state="failed"))
    searching.suggest("a")
    searching.on_trial_complete("a", error=True)
    assert not searching.running and searching.study.trials[0].state == TrialState.FAIL
    assert isinstance(searching.suggest("b"), dict) and len(driver.begun) == 2


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
    assert driver.begun == {6: past[5].architecture}
    searching.on_trial_complete("a", {"report": "{}"})
    assert searching.suggest("b") == Searcher.FINISHED  # four of five were begun before the interruption


def test_a_recorded_candidate_is_a_trial_that_the_space_reads_back() -> None:
    for candidate in history():
        frozen = as_trial(SPACE, candidate)
        assert SPACE.architecture(optuna.trial.FixedTrial(frozen.params)) == candidate.architecture
        if candidate.state == "complete":
            assert frozen.values == values_of(candidate.scores)
