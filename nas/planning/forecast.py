"""When a search will end: told with its plan, and corrected, in one line, where that was off."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console

from nas.study.budget import Account
from nas.study.progress import in_clock

WORTH_TELLING = 0.1  # of the whole time that was told: corrections below it are not


@dataclass(kw_only=True)
class Forecast:
    """alone: resource-seconds of what trains alone and is to come. cores: of the budget's resource, that it holds, 0: a worker's.
    The rest of the budget is spent by all workers at once."""

    account: Account
    console: Console
    alone: float
    cores: float = 0.0
    clock: Callable[[], float] = time.monotonic
    told: float = field(init=False)
    whole: float = field(init=False)

    def __post_init__(self) -> None:
        self.whole = self.to_go()
        self.told = self.clock() + self.whole

    def to_go(self) -> float:
        """Wall seconds until the budget is spent."""
        together = max(0.0, self.account.left - self.alone)
        held = self.account.resources
        return self.alone / (self.cores or held) + together / (self.account.workers * held)

    def after(self, what: str, alone: float = 0.0) -> None:
        """Corrects what was told where it is off by now. alone: as the field, after the step that ended."""
        self.alone = alone
        to_go, said = self.to_go(), self.told - self.clock()
        now, before = in_clock(to_go), in_clock(max(0.0, said))
        if abs(to_go - said) > WORTH_TELLING * self.whole and now != before:
            self.told = self.clock() + to_go
            self.console.print(f"plan corrected after {what}: about {now} to go, not {before}", highlight=False)
