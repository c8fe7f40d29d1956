"""What a search decides about its end: which candidates are trained at full length, beside which references, and how long."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nas.planning.pace import Pace, training_macs
from nas.planning.plan import (
    FEWEST_MEMBERS,
    FINAL_SAFETY,
    REFERENCE_SHARE,
    Plan,
    full_steps,
    steps_between,
)
from nas.stages.finals import PREDICTED, SCRATCH, TUTOR, Final, front_of, is_done, read_finals, record_final, unbeaten
from nas.study.budget import Account
from nas.study.candidates import Candidate, values_of
from nas.study.pareto import epsilon_net, knee, non_dominated
from nas.worker.context import Context, cost_scores
from nas.worker.task import Start
from search_spaces.architecture import Baseline
from search_spaces.catalog import QUARTER, paper_student

SHORTEST_REFERENCE = 5  # steps: its heads are fitted in closed form, and know something all the same
ENDED = ("complete", "stopped")  # of candidates that have scores: as finals they begin anew
OVERDRAFT = 0.01  # of the budget, by which what is predicted may overrun it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """pace: of finals."""

    context: Context
    plan: Plan
    pace: Pace
    account: Account

    def wanted(self) -> list[Final]:
        """Finalists and references, which are as long as what is left of the budget lets a front have enough members; where it lets
        that for none, candidates as they were trained.

        Where finals were begun before, those, and further finalists of the same length that a raised budget pays for; where members
        were as they were trained, finalists in their place, and longer references.
        """
        study = self.context.study
        candidates = self._candidates()
        recorded = [final for final in read_finals(study) if final.role != SCRATCH]
        finals = [*recorded, *self._further(recorded, candidates)] if recorded else self._first(candidates)
        if new := [final for final in finals if final not in recorded]:
            record_final(study, *new)
        return list({final.name: final for final in finals}.values())

    def _candidates(self) -> list[Candidate]:
        study, teacher = self.context.study, cost_scores(self.context, self.context.teacher.architecture)
        least_lost = best_within(list(study.history()), QUARTER * teacher["params"])
        return choose_finalists(study.candidates(), study.config.finalists, least_lost)

    def scratch(self) -> Final | None:
        """The front's knee at random, fine-tuned on as many windows as it was distilled and fine-tuned on; None where there is no
        member."""
        front = front_of(read_finals(self.context.study))
        if not front:
            return None
        best = front[knee(np.array([final.objectives() for final in front]))]
        return Final(
            name=f"{best.name}-from-scratch",
            role=SCRATCH,
            architecture=best.architecture,
            start="random",
            distill_steps=0,
            finetune_steps=equal_windows(best.distill_steps, best.finetune_steps),
            candidate=best.candidate,
        )

    def as_trained(self) -> list[Final]:
        """Candidates as they were trained, which nothing else beats on validation speakers, up to as many members as are wanted."""
        study = self.context.study
        finals = read_finals(study)
        there = len(front_of(finals))
        wanted = max(0, max(FEWEST_MEMBERS, study.config.finalists) - there)
        members = self._members(choose_finalists(unbeaten(study.candidates(), finals), wanted))
        return self._affordable(members, self.account.left / self.account.resources, FEWEST_MEMBERS - there)

    def _affordable(self, members: Sequence[Final], seconds: float, fewest: int) -> list[Final]:
        """The first of those that are only tested whose tests fit into so many wall seconds; so many come whatever they cost."""
        fitting = int((np.cumsum([self.seconds(member) for member in members]) <= seconds).sum())
        return [*members[: max(fitting, fewest, 0)]]

    def tests(self) -> float:
        """Predicted resource-seconds of testing those that would be members as they were trained."""
        return self.account.resources * sum(map(self.seconds, self.as_trained()))

    def seconds(self, final: Final) -> float:
        """Predicted, of wall time."""
        macs = training_macs(self.context, final.architecture)
        if final.source:
            return self.pace.tested(macs)
        return self.pace.seconds(macs, final.distill_steps, final.finetune_steps, is_random=final.start == "random")

    def begun(self, final: Final, running: Sequence[tuple[Final, float]]) -> Final | None:
        """As it is begun beside those that run, each with its seconds so far. A finalist beyond the first needs room in the budget;
        a reference is made as short as it has to be; what is only tested costs little, and always is."""
        finals = read_finals(self.context.study)
        to_pay = sum(max(0.0, self.seconds(other) - past) for other, past in running)
        to_pay += self.pace.measuring * sum(bool(other.scores) and PREDICTED not in other.scores for other in finals)
        room = (self.account.left + OVERDRAFT * self.account.budget.seconds) / self.account.resources - to_pay
        if final.role == "finalist" and not final.source:
            first = next(recorded.name for recorded in finals if recorded.role == "finalist")
            if final.name != first and self.seconds(final) > room:
                return None
            if final.candidate in _tested(finals) and not final.read_before:  # as the candidate was, for want of room
                final = dataclasses.replace(final, read_before=True)
                record_final(self.context.study, final)
            return final
        names = {final.name, *(other.name for other, _ in running)}
        references = [other for other in finals if other.role not in ("finalist", SCRATCH) and not other.scores]
        later = [self.seconds(other) for other in references if other.name not in names]
        if final.role != SCRATCH and (scratch := self.scratch()):
            later.append(self.seconds(scratch))
        begun = self._shortened(final, max(room - sum(later), room / (len(later) + 1)))
        if begun != final:
            record_final(self.context.study, begun)
        return begun

    def _shortened(self, final: Final, room: float) -> Final:
        """With fewer updates, where it would take more wall seconds than there is room for."""
        if final.source or self.seconds(final) <= room:
            return final
        whole = final.finetune_steps
        shorter = [
            dataclasses.replace(final, finetune_steps=steps, distill_steps=round(final.distill_steps * steps / whole))
            for steps in steps_between(min(SHORTEST_REFERENCE, whole), whole)
        ]
        return max((one for one in shorter if self.seconds(one) <= room), key=lambda one: one.finetune_steps, default=shorter[0])

    def _first(self, candidates: Sequence[Candidate]) -> list[Final]:
        for count in range(len(candidates), min(FEWEST_MEMBERS, len(candidates)) - 1, -1):
            if steps := self._longest(candidates[:count]):
                return [*self._of_length(candidates[:count], steps), *self._references(steps)]
        references = self._references(self.plan.full_steps)
        shortest = sum(self.seconds(self._shortened(reference, 0.0)) for reference in references)
        room = self.account.left / self.account.resources - shortest
        return [*self._affordable(self._members(_complete(candidates)), room, FEWEST_MEMBERS), *references]

    def _longest(self, candidates: Sequence[Candidate]) -> int:
        """Steps of so many finalists with their references, 0 where they do not fit. References that are no shorter than finalists
        go before length: against others no claim is made."""
        share = REFERENCE_SHARE * self.account.left / self.account.resources

        def cost(steps: int, *, whole: bool = False) -> float:
            finalists = [self.seconds(final) for final in self._of_length(candidates, steps)]
            [scratch] = self._finalists(candidates[:1], steps)  # which stands for the scratch reference
            references = [self.seconds(scratch), *map(self.seconds, self._whole_references(steps))]
            if whole and max(references) > share:
                return math.inf
            return self.account.resources * (sum(finalists) + sum(min(share, seconds) for seconds in references))

        def longest(cost: Callable[[int], float]) -> int:
            return full_steps(self.account.left, cost, self.plan, self.context.study.config.full_length)

        return longest(functools.partial(cost, whole=True)) or longest(cost)

    def _further(self, recorded: Sequence[Final], candidates: Sequence[Candidate]) -> list[Final]:
        trained = [final for final in recorded if final.role == "finalist" and not final.source]
        new, longer, known = list[Final](), list[Final](), {final.name: final.updates for final in recorded}
        waiting = [c for c in candidates if c.number not in {final.candidate for final in trained}]
        if trained:
            distill, tune = trained[0].distill_steps, trained[0].finetune_steps
            new = [
                dataclasses.replace(final, distill_steps=distill, finetune_steps=tune)
                for final in self._finalists(waiting, self.plan.full_steps)
            ]
        else:
            steps = self._longest(waiting[:FEWEST_MEMBERS])
            if steps and not self._is_as_trained(steps):
                new = self._finalists(waiting, steps)
                longer = [reference for reference in self._references(steps) if reference.updates > known.get(reference.name, 0)]
        again = {reference.name for reference in longer}
        undone = [final for final in recorded if final.name not in again and not is_done(self.context.study, final)]
        to_pay = sum(map(self.seconds, [*undone, *longer]))
        if (scratch := self.scratch()) and not is_done(self.context.study, scratch):
            to_pay += self.seconds(scratch)
        left = self.account.left - to_pay * self.account.resources
        afforded = np.cumsum([FINAL_SAFETY * self.account.resources * self.seconds(final) for final in new]) <= left
        further = [final for final, affordable in zip(new, afforded) if affordable]
        return [*further, *longer] if further else []

    def _references(self, steps: int) -> list[Final]:
        """None takes more than its share of what is left: it would be shorter."""
        share = REFERENCE_SHARE * self.account.left / self.account.resources
        return [self._shortened(reference, share) for reference in self._whole_references(steps)]

    def _whole_references(self, steps: int) -> list[Final]:
        """A tutor that was tuned for as many steps is the teacher."""
        teacher, distill = self.context.teacher.architecture, self._distill_steps(steps)
        tutor = self.plan.tutor_steps
        return [
            Final(
                name="teacher",
                role="teacher",
                architecture=teacher,
                start="teacher",
                distill_steps=0,
                finetune_steps=max(tutor, steps),
                source=TUTOR if tutor >= steps else None,
            ),
            Final(
                name="paper-student",
                role="paper's student",
                architecture=paper_student(teacher),
                start=self.context.study.config.recipe.start,
                distill_steps=distill,
                finetune_steps=steps,
                tutor_steps=tutor,
            ),
            Final(
                name="bc-resnet",
                role="BC-ResNet",
                architecture=Baseline(),
                start="random",
                distill_steps=0,
                finetune_steps=equal_windows(distill, steps),
            ),
        ]

    def _of_length(self, candidates: Sequence[Candidate], steps: int) -> list[Final]:
        """Of a candidate's own length complete ones are what they are: trained again they would come out the same."""
        if not self._is_as_trained(steps):
            return self._finalists(candidates, steps)
        return [*self._members(_complete(candidates)), *self._finalists([c for c in candidates if c.state != "complete"], steps)]

    def _is_as_trained(self, steps: int) -> bool:
        return not self.plan.shared_steps and steps == self.plan.finetune_steps

    def _members(self, candidates: Sequence[Candidate]) -> list[Final]:
        """As they were trained."""
        plan = self.plan
        return [
            dataclasses.replace(
                final,
                name=f"member-{final.candidate}",
                distill_steps=plan.distill_steps,
                finetune_steps=plan.finetune_steps,
                source=f"candidate-{final.candidate}",
                read_before=False,
            )
            for final in self._finalists(candidates, plan.full_steps)
        ]

    def _finalists(self, candidates: Sequence[Candidate], steps: int) -> list[Final]:
        """Those that begin with a shared student's weights are tuned on as many windows as others are distilled and tuned."""
        tested = _tested(read_finals(self.context.study))
        distill, tune = self._distill_steps(steps), steps
        start: Start = self.context.study.config.recipe.start
        if self.plan.shared_steps:
            distill, tune, start = 0, equal_windows(distill, steps), "shared student"
        return [
            Final(
                name=f"final-{candidate.number}",
                role="finalist",
                architecture=candidate.architecture,
                start=start,
                distill_steps=distill,
                finetune_steps=tune,
                candidate=candidate.number,
                tutor_steps=self.plan.tutor_steps,
                read_before=candidate.number in tested,
            )
            for candidate in candidates
        ]

    def _distill_steps(self, steps: int) -> int:
        """Of what begins with the teacher's weights: in a candidate's proportion; as many where a shared student spared candidates
        them."""
        if self.plan.shared_steps:
            return 0 if self.context.study.config.recipe.fit_windows else steps
        return round(steps * self.plan.distill_steps / self.plan.finetune_steps)


def _tested(finals: Sequence[Final]) -> set[int | None]:
    """Candidates that were tested as they were trained."""
    return {final.candidate for final in finals if final.source and final.scores and final.role == "finalist"}


def _complete(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate.state == "complete"]


def best_within(history: Sequence[Candidate], params: float) -> Candidate | None:
    """Of candidates of at most so many weights the one that lost least to the best on its last rung, in the sum of both errors, as
    a share of what the worst lost there: few of them come to the end, and scores of two rungs cannot be compared.

    history: a record a rung, and last of each candidate what became of it."""
    last, errors = {c.number: c for c in history}, dict[int, dict[int, float]]()
    for candidate in history:
        if candidate.rung and np.isfinite(values_of(candidate.scores)).all():
            errors.setdefault(candidate.rung, {})[candidate.number] = candidate.scores["keyword_error"] + candidate.scores["eer"]

    def lost(candidate: Candidate) -> float:
        reached = errors[candidate.rung]
        best, worst = min(reached.values()), max(reached.values())
        return (reached[candidate.number] - best) / ((worst - best) or 1.0)

    ended = [c for c in last.values() if c.state in ENDED and c.number in errors.get(c.rung, {})]
    return min((c for c in ended if c.scores["params"] <= params), key=lost, default=None)


def choose_finalists(candidates: Sequence[Candidate], most: int, second: Candidate | None = None) -> list[Candidate]:
    """At most `most` candidates: complete ones, then those that were stopped, from the highest rung down: few come to the last one,
    and finals begin anew. second: that comes after the first, whatever it scored."""
    first, rest = _best(candidates, 1), _best(candidates, most)
    chosen = [*first, *(c for c in candidates if second and c.number == second.number), *rest]
    return list({c.number: c for c in chosen}.values())[:most]


def _best(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    chosen: list[Candidate] = []
    reached = {c.number: (c.state == "complete", c.rung) for c in candidates if c.state in ENDED}
    for rung in sorted(set(reached.values()), reverse=True):  # scores of a rung are compared among themselves
        chosen += _of_a_rung([c for c in candidates if reached.get(c.number) == rung], most - len(chosen))
    return chosen


def _of_a_rung(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """The front first, then what is behind it, front by front. Of a front that is too large, its knee and extremes, then always the
    member farthest from those chosen (objectives scaled to the front's range)."""
    chosen: list[Candidate] = []
    left = [c for c in candidates if np.isfinite(values_of(c.scores)).all()]
    while left and len(chosen) < most:
        points = np.array([values_of(c.scores) for c in left])
        on_front = non_dominated(points)
        front = [c for c, on in zip(left, on_front) if on]
        chosen += [front[i] for i in spread(points[on_front], most - len(chosen))]
        left = [c for c, on in zip(left, on_front) if not on]
    return chosen


def equal_windows(distill_steps: int, finetune_steps: int) -> int:
    """Fine-tuning steps, of two batches each, of what is not distilled: it hears as many windows as both trainings of a student, of
    whose steps of distillation each has one batch."""
    return finetune_steps + distill_steps // 2


def spread(points: np.ndarray[Any, np.dtype[np.floating[Any]]], most: int) -> list[int]:
    """Indices of at most `most` rows that lie apart: knee, the best in each objective, then the farthest from all chosen."""
    return epsilon_net(points, list(dict.fromkeys([knee(points), *map(int, points.argmin(0))])))[:most]
