"""What a search decides about its end: which candidates are trained at full length, beside which references, and how long."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from nas.planning.pace import Pace, training_macs
from nas.planning.plan import FINAL_SAFETY, Plan, full_steps
from nas.stages.finals import Final, is_done, read_finals, record_final
from nas.study.budget import Account
from nas.study.candidates import Candidate, values_of
from nas.study.pareto import epsilon_net, knee, non_dominated
from nas.worker.context import Context
from nas.worker.task import Start
from search_spaces.architecture import Baseline, Network
from search_spaces.catalog import paper_student

OVERDRAFT = 0.01  # of the budget, by which what is predicted may overrun it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """pace: of finals."""

    context: Context
    plan: Plan
    pace: Pace
    account: Account

    def wanted(self) -> list[Final]:
        """The references and as many finalists as what is left of the budget trains at least as long as a candidate.

        Where finals were begun before, those, and further finalists of the same length that a raised budget pays for.
        """
        study = self.context.study
        candidates = choose_finalists(study.candidates(), study.config.finalists)
        recorded = [final for final in read_finals(study) if final.role != "knee from scratch"]
        finals = recorded + self._further(recorded, candidates) if recorded else self._first(candidates)
        for final in finals:
            if final not in recorded:
                record_final(study, final)
        return finals

    def scratch(self) -> Final | None:
        """The front's knee at random, fine-tuned on as many windows as it was distilled and fine-tuned on; None where no
        finalist was trained."""
        trained = [final for final in read_finals(self.context.study) if final.role == "finalist" and final.scores]
        if not trained:
            return None
        front = [f for f, on in zip(trained, non_dominated(np.array([f.objectives() for f in trained]))) if on]
        best = front[knee(np.array([f.objectives() for f in front]))]
        return Final(
            name=f"{best.name}-from-scratch",
            role="knee from scratch",
            architecture=best.architecture,
            start="random",
            distill_steps=0,
            finetune_steps=equal_windows(best.distill_steps, best.finetune_steps),
            candidate=best.candidate,
        )

    def seconds(self, final: Final) -> float:
        """Predicted, of wall time."""
        return self.pace.seconds(training_macs(self.context, final.architecture), final.distill_steps, final.finetune_steps)

    def affordable(self, final: Final, running: Sequence[tuple[Final, float]]) -> bool:
        """Whether it fits into the budget beside those that run, each with its seconds so far; what a front cannot do without, its
        references and first finalist, always does."""
        first = next(recorded.name for recorded in read_finals(self.context.study) if recorded.role == "finalist")
        if final.role != "finalist" or final.name == first:
            return True
        seconds = self.seconds(final) + sum(max(0.0, self.seconds(other) - past) for other, past in running)
        return seconds * self.account.resources <= self.account.left + OVERDRAFT * self.account.budget.seconds

    def _first(self, candidates: Sequence[Candidate]) -> list[Final]:
        teacher, config = self.context.teacher.architecture, self.context.study.config
        for count in range(len(candidates), 0, -1):
            members = [candidate.architecture for candidate in candidates[:count]]
            # the first member twice: it stands for the scratch reference
            trained: list[Network] = [teacher, paper_student(teacher), Baseline(), *members, members[0]]
            macs = [training_macs(self.context, architecture) for architecture in trained]
            steps = full_steps(self.account.left, self.account.resources, self.pace, macs, self.plan, config.full_length)
            if steps or count == 1:
                length = max(steps, self.plan.full_steps)
                return [*self._references(length), *self._finalists(candidates[:count], length)]
        return []

    def _further(self, recorded: Sequence[Final], candidates: Sequence[Candidate]) -> list[Final]:
        begun = {final.candidate for final in recorded}
        length = next(final.finetune_steps for final in recorded if final.role == "paper's student")
        new = self._finalists([c for c in candidates if c.number not in begun], length)
        to_pay = sum(self.seconds(final) for final in recorded if not is_done(self.context.study, final))
        left = self.account.left - to_pay * self.account.resources
        afforded = np.cumsum([FINAL_SAFETY * self.account.resources * self.seconds(final) for final in new]) <= left
        return [final for final, affordable in zip(new, afforded) if affordable]

    def _references(self, steps: int) -> list[Final]:
        teacher, distill = self.context.teacher.architecture, self._distill_steps(steps)
        return [
            Final(name="teacher", role="teacher", architecture=teacher, start="teacher", distill_steps=0, finetune_steps=steps),
            Final(
                name="paper-student",
                role="paper's student",
                architecture=paper_student(teacher),
                start=self.context.study.config.recipe.start,
                distill_steps=distill,
                finetune_steps=steps,
                tutor_steps=self.plan.tutor_steps,
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

    def _finalists(self, candidates: Sequence[Candidate], steps: int) -> list[Final]:
        """Those that begin with a shared student's weights are tuned on as many windows as others are distilled and tuned."""
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
            )
            for candidate in candidates
        ]

    def _distill_steps(self, steps: int) -> int:
        """Of what begins with the teacher's weights: in a candidate's proportion; as many where candidates were spared them."""
        return steps if self.plan.shared_steps else round(steps * self.plan.distill_steps / self.plan.finetune_steps)


def choose_finalists(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """At most `most` complete candidates: the front first, then what is behind it, front by front. Of a front that is too large,
    its knee and extremes, then always the member farthest from those chosen (objectives scaled to the front's range)."""
    chosen: list[Candidate] = []
    left = [c for c in candidates if c.state == "complete" and np.isfinite(values_of(c.scores)).all()]
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
