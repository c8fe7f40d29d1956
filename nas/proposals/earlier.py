"""What earlier studies of the same teacher and space lead one to expect of a member, before this study has trained anything."""

from collections.abc import Callable, Sequence

import numpy as np

from nas.proposals.surrogate import features, modelled, posterior, to_unit
from nas.study.candidates import Candidate, values_of
from nas.study.pareto import Points
from search_spaces.architecture import Architecture

FEWEST = 8  # candidates of a study that are asked
Hindsight = Callable[[Sequence[Architecture]], Points]


def hindsight(earlier: Sequence[Sequence[Candidate]]) -> Hindsight | None:
    """Gives (members, errors): what each study's candidates of its last rung predict, in standard deviations from their mean,
    averaged over the studies, since another corpus has errors of another size. None where no study has enough."""
    studies = [_last_rung(study) for study in earlier if teaches(study)]
    if not studies:
        return None

    def expected(members: Sequence[Architecture]) -> Points:
        return np.asarray(np.mean([_expected(known, members) for known in studies], 0))

    return expected


def teaches(study: Sequence[Candidate]) -> bool:
    """Whether enough of its candidates came to their last rung."""
    return len(_last_rung(study)) >= FEWEST


def _last_rung(study: Sequence[Candidate]) -> list[Candidate]:
    scored = modelled(study)
    return [candidate for candidate in scored if candidate.rung == scored[-1].rung]


def _expected(known: Sequence[Candidate], members: Sequence[Architecture]) -> Points:
    values = np.array([values_of(candidate.scores)[:-1] for candidate in known])
    rows = to_unit([features(a, 0) for a in (*(candidate.architecture for candidate in known), *members)])
    means, _ = posterior(rows[: len(known)], values, rows[len(known) :])
    return np.asarray((means - values.mean(0)) / np.maximum(values.std(0), 1e-9))
