"""What died of its surroundings, a worker killed or a node lost, is tried again; what failed by itself is not. One rule for all."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from time import monotonic

from ray.exceptions import RayTaskError

from nas.study.candidates import Candidate
from nas.study.progress import say

MOST_DEATHS = 3  # of one training, after which it is tried again; the next one is the last
TOO_OFTEN = f"the worker died {MOST_DEATHS + 1} times"  # begins the error then
TOGETHER = 3.0  # seconds within which deaths have one cause, and are said in one line
OF_A_NODE = re.compile(r"\bnode\b[^.]* (has died|is dead|has crashed)")
NAMED = 3  # trainings in a line
REASON = 400  # characters
UNKNOWN = "most likely for want of memory"


def is_of_surroundings(error: Exception | None) -> bool:
    """Of what Ray raises for a training that has no report, None where it does not say what. What a training itself raises is a
    report; beyond that it is a `RayTaskError`."""
    return not isinstance(error, RayTaskError)


def in_a_line(reason: str) -> str:
    """Of Ray's words the line that says what happened: the last, but for want of memory, which an essay follows."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    told = [line for line in lines if "low on memory" in line] or lines or [UNKNOWN]
    return told[-1][:REASON]


def revived(candidate: Candidate) -> Candidate:
    """As it is when a study is resumed: one that died of its surroundings too often is to be tried again."""
    has_died = candidate.state == "failed" and (candidate.error or "").startswith(TOO_OFTEN)
    return replace(candidate, state="running", error=None) if has_died else candidate


@dataclass
class Deaths:
    """Of the trainings of one stage, by name. A resumed study counts anew."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    unsaid: list[tuple[float, str]] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)

    def again(self, name: str, reason: str, error: Exception | None = None) -> bool:
        """Notes a death, with Ray's words and its error; whether the training is to be tried again."""
        self.counts[name] += 1
        self.reasons[name] = reason
        is_tried = is_of_surroundings(error) and self.counts[name] <= MOST_DEATHS
        if is_tried:
            self.unsaid.append((monotonic(), name))
        return is_tried

    def error(self, name: str) -> str:
        """Of one that is not tried again."""
        times = self.counts[name]
        return f"the worker died{f' {times} times, at last' if times > 1 else ''}: {in_a_line(self.reasons.get(name, ''))}"

    def say(self, silent: set[str], *, wait: float = TOGETHER) -> None:
        """What is new: deaths that are `wait` seconds old, with those after them; workers that no longer give a sign of life."""
        if fell := sorted(silent - self.silent):
            say(f"no sign of life from {listed(fell)}: nothing is charged until there is one")
        self.silent = silent
        if not self.unsaid or monotonic() - self.unsaid[0][0] < wait:
            return
        names = list(dict.fromkeys(name for _, name in self.unsaid))
        what = "node" if any(OF_A_NODE.search(self.reasons[name]) for name in names) else "worker"
        verb, where = ("is", "its checkpoint") if len(names) == 1 else ("are", "their checkpoints")
        say(f"a {what} died: {listed(names)} {verb} tried again from {where}")
        self.unsaid.clear()


def listed(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"{len(names)} trainings ({shown})"
