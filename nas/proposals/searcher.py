"""Optuna's proposals for Ray Tune.

Ray's own OptunaSearch tells Optuna of early-stopped trials as complete, dies of a missing objective, and cannot pass a
constraint. This one asks and tells itself. It keeps nothing on disk: Optuna is rebuilt from the recorded candidates.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from nas.proposals.earlier import hindsight
from nas.proposals.surrogate import FEWEST, modelled, most_promising
from nas.study.candidates import OBJECTIVES, Candidate, values_of
from nas.study.config import Sampler
from nas.study.pareto import front_ranks, non_dominated
from search_spaces.architecture import Architecture
from search_spaces.space import Mutation, RandomChooser, Replay, SearchSpace

STARTUP_TRIALS = 10  # random proposals before the sampler models anything
POPULATION = 16  # of NSGA-II: a search sees some dozens of candidates
PATIENCE = 5  # proposals in vain before random ones
MOST_ASKS = 200  # proposals in a row that are refused before the search is over
MOST_MODELLED = 160  # candidates that Optuna models, twice as many before some are forgotten: proposals take time linear in them
MOST_DRAWS = 400  # random members, known or too dear, before nothing is taken to be left
POOL = 100  # members of which a model chooses
STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "running": TrialState.RUNNING}


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the driver lends the searcher.

    refusal: why an architecture breaks a limit, None when it does not. affordable: whether its training can still finish.
    started: a number and an architecture become a training: the configuration for the worker. refused: it breaks a limit.
    finished: a training ended, however it did; returns the candidate as recorded, None where it is to be tried again.
    latency: predicted, of an architecture, in ms. seconds: predicted, of training it through all rungs.
    """

    refusal: Callable[[Architecture], str | None]
    affordable: Callable[[Architecture], bool]
    started: Callable[[int, Architecture], dict[str, Any]]
    refused: Callable[[int, Architecture, str], None]
    finished: Callable[[int], Candidate | None]
    latency: Callable[[Architecture], float]
    seconds: Callable[[Architecture], float]


class StudySearcher(Searcher):
    """Proposes architectures until `limit` candidates were begun, nothing affordable is left, or the space is exhausted."""

    def __init__(
        self,
        space: SearchSpace,
        hooks: Hooks,
        *,
        history: Sequence[Candidate],
        seed: int,
        limit: int | None,
        sampler: Sampler = "gp",
        first: Sequence[Architecture] = (),
        earlier: Sequence[Sequence[Candidate]] = (),
    ) -> None:
        """history: what is recorded. first: members of the space that are tried before anything that the sampler proposes.
        earlier: candidates of other studies, of which `gp` learns."""
        super().__init__()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.hooks, self.limit = space, hooks, limit
        self.sampler, self.seed, self.random = sampler, seed, random.Random(seed)
        self.hindsight = hindsight(earlier)
        self.running: dict[str, tuple[int, int, Architecture]] = {}
        self.died: list[str] = []  # of those that run: to be tried again
        self.ended = [candidate for candidate in history if candidate.state != "running"]
        self.seen = {candidate.architecture for candidate in self.ended}
        self.interrupted = {candidate.architecture: candidate.number for candidate in history if candidate.state == "running"}
        self.begun = sum(candidate.state not in ("refused", "running") for candidate in history)
        self.next_number = 1 + max((candidate.number for candidate in history), default=-1)
        self.study = self._rebuilt()
        for architecture in [*self.interrupted, *first]:  # what was interrupted goes on before anything else
            self.enqueue(architecture)

    def _rebuilt(self) -> optuna.Study:
        """What Optuna should know of what has ended and of what runs."""
        study = new_study(self.sampler, self.seed + self.next_number)
        told = TOLD[self.sampler](self.ended)
        study.add_trials([as_trial(self.space, candidate) for candidate in told])
        for trial_id, (number, _, architecture) in self.running.items():
            self.running[trial_id] = (number, len(study.get_trials(deepcopy=False)), architecture)
            study.add_trial(as_trial(self.space, Candidate(number=number, architecture=architecture, state="running")))
        return study

    def enqueue(self, architecture: Architecture) -> None:
        """Proposes a member of the space before anything that Optuna chooses."""
        if architecture not in self.seen:
            self.study.enqueue_trial(Replay(architecture).answers, skip_if_exists=True)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a text
        """A worker's configuration, None to wait, or FINISHED. Ray calls this whenever a worker is free."""
        if self.died:
            self.running[trial_id] = number, _, architecture = self.running.pop(self.died.pop(0))
            return self.hooks.started(number, architecture)
        for asked in range(MOST_ASKS):
            if self.limit is not None and self.begun >= self.limit:
                break
            known = self.study.get_trials(deepcopy=False)
            is_waiting = any(trial.state == TrialState.WAITING for trial in known)
            if self.sampler != "nsga2" and len(known) > 2 * MOST_MODELLED and not is_waiting:
                self.study = self._rebuilt()
            drawn = None if is_waiting else self._draw()
            if not drawn and not is_waiting:
                break  # a sampler costs a hundred draws, and asked in vain it grows slower
            if drawn and (self.sampler == "gp" or asked >= PATIENCE):
                self.enqueue(drawn)  # samplers that kept proposing what is known ended searches of small spaces early
            trial = self.study.ask()
            architecture = self.space.architecture(trial)
            if self._worth_starting(trial, architecture):
                number = self._take_number(architecture)
                self.begun += 1
                self.running[trial_id] = (number, trial.number, architecture)
                return self.hooks.started(number, architecture)
        return None if self.running else str(Searcher.FINISHED)

    def _draw(self) -> Architecture | None:
        """A member that is neither known nor too dear, random or the most promising of many; None where there seems to be none."""
        scored = modelled(self.ended) if self.sampler == "gp" else []
        if len(scored) < FEWEST:
            return self._foreseen() if self.sampler == "gp" and self.hindsight else next(self._unknown(()), None)
        pool = [*dict.fromkeys(islice(self._unknown([c.architecture for c in scored if c.state == "complete"]), POOL))]
        running = [architecture for _, _, architecture in self.running.values()]
        hooks = self.hooks
        return most_promising(pool, running, scored, hooks.latency, hooks.seconds, self.hindsight) if pool else None

    def _foreseen(self) -> Architecture | None:
        """One of those that no other beats, as far as earlier studies tell."""
        assert self.hindsight
        pool = [*dict.fromkeys(islice(self._unknown(()), POOL))]
        if not pool:
            return None
        points = np.column_stack([self.hindsight(pool), [self.hooks.latency(a) for a in pool]])
        return self.random.choice([a for a, on in zip(pool, non_dominated(points)) if on])

    def _unknown(self, parents: Sequence[Architecture]) -> Iterator[Architecture]:
        """Members drawn at random, half of them near the parents where there are any; some may come again."""
        for _ in range(MOST_DRAWS):
            is_child = parents and self.random.random() < 0.5
            chooser = Mutation(self.random.choice(parents), self.random) if is_child else RandomChooser(self.random)
            drawn = self.space.architecture(chooser)
            if drawn not in self.seen and self.hooks.affordable(drawn):
                yield drawn

    def _worth_starting(self, trial: optuna.Trial, architecture: Architecture) -> bool:
        known = architecture in self.seen
        reason = None if known else self.hooks.refusal(architecture)
        if not known and reason is None and self.hooks.affordable(architecture):
            self.seen.add(architecture)
            return True
        if reason is not None:
            self.seen.add(architecture)
            self.hooks.refused(self._take_number(architecture), architecture, reason)
        self.study.tell(trial, state=TrialState.FAIL)
        return False

    def _take_number(self, architecture: Architecture) -> int:
        """A new one, or that of the candidate which was interrupted."""
        if architecture in self.interrupted:
            return self.interrupted.pop(architecture)
        self.next_number += 1
        return self.next_number - 1

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        number, trial, _ = self.running[trial_id]
        candidate = self.hooks.finished(number)
        if candidate is None:
            self.died.append(trial_id)
            return
        del self.running[trial_id]
        self.ended.append(candidate)
        if self.sampler != "nsga2" and len(self.ended) > 4 * MOST_MODELLED:
            kept = {c.number for c in [*most_telling(self.ended), *modelled(self.ended)]}
            self.ended = [c for c in self.ended if c.number in kept]
        state = STATES.get(candidate.state, TrialState.FAIL)
        self.study.tell(trial, values_of(candidate.scores) if state == TrialState.COMPLETE else None, state=state)

    def __reduce__(self) -> tuple[type[Searcher], tuple[()]]:
        """Ray pickles its own state, which is never read again; what the driver lends does not pickle."""
        return Searcher, ()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study folder is the only record."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is resumed from its study folder, not from Ray's state")


def new_study(sampler: Sampler, seed: int) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_study(directions=["minimize"] * len(OBJECTIVES), sampler=SAMPLERS[sampler](seed))


SAMPLERS: Mapping[Sampler, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(
        seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS
    ),
    "optuna-gp": lambda seed: optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False
    ),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION),
    "gp": lambda seed: optuna.samplers.RandomSampler(seed=seed),  # never asked: `_draw` proposes
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def nothing(candidates: Sequence[Candidate]) -> list[Candidate]:
    """What a sampler is told that is never asked, or draws at random."""
    return []


def most_telling(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of too many, those of the best fronts as half of them, and the latest; not those without scores."""
    if len(candidates) <= MOST_MODELLED:
        return [*candidates]
    candidates = [candidate for candidate in candidates if candidate.state in STATES]
    complete = [candidate for candidate in candidates if candidate.state == "complete"]
    ranks = front_ranks(np.array([values_of(candidate.scores) for candidate in complete]).reshape(-1, len(OBJECTIVES)))
    best = {complete[i].number for i in np.argsort(ranks, kind="stable")[: MOST_MODELLED // 2]}
    latest = [candidate.number for candidate in candidates if candidate.number not in best][len(best) - MOST_MODELLED :]
    return [candidate for candidate in candidates if candidate.number in best.union(latest)]


TOLD: Mapping[Sampler, Callable[[Sequence[Candidate]], list[Candidate]]] = {
    "gp": nothing,
    "random": nothing,
    "nsga2": list,  # it counts generations
    "tpe": most_telling,
    "optuna-gp": most_telling,
}


def as_trial(space: SearchSpace, candidate: Candidate) -> FrozenTrial:
    """A recorded candidate in Optuna's terms."""
    recorder = _Recorder(candidate.architecture)
    space.architecture(recorder)
    state = STATES.get(candidate.state, TrialState.FAIL)
    return create_trial(
        params=recorder.answers,
        distributions=recorder.distributions,
        values=values_of(candidate.scores) if state == TrialState.COMPLETE else None,
        state=state,
    )


class _Recorder(Replay):
    """Replays an architecture and notes the choices that each of its answers was one of."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.distributions[name] = CategoricalDistribution(tuple(choices))
        return super().suggest_categorical(name, choices)
