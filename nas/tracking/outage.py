"""MLflow that does not answer: it must not take the work with it, nor hold it up."""

import time
import warnings
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
PAUSE = 60.0  # seconds without a further attempt: a call to a server that is gone tries for half a minute


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


class Outage:
    """Says once that MLflow does not answer; what it missed is to be logged at the end, since all that is logged is keyed."""

    def __init__(self, work: str, clock: Callable[[], float] = time.monotonic) -> None:
        """work: what goes on without it, for the message."""
        self.work, self.was_told, self.clock, self.again = work, False, clock, float("-inf")

    def passed_over(self, call: Callable[[], Result]) -> Result | None:
        """The call's result, None where MLflow did not take it, or did not a moment ago."""
        if self.clock() < self.again:
            return None
        try:
            return call()
        except Exception as error:  # MLflow's and its transports' many kinds
            if not self.was_told:
                warnings.warn(f"MLflow does not answer, {self.work} goes on and logs at its end: {first_line(error)}", stacklevel=3)
            self.was_told, self.again = True, self.clock() + PAUSE
            return None
