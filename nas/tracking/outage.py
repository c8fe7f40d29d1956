"""MLflow that does not answer: it must not take the work with it."""

import warnings
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


class Outage:
    """Says once that MLflow does not answer; what it missed is to be logged at the end, since all that is logged is keyed."""

    def __init__(self, work: str) -> None:
        """work: what goes on without it, for the message."""
        self.work, self.was_told = work, False

    def passed_over(self, call: Callable[[], Result]) -> Result | None:
        """The call's result, None where MLflow did not take it."""
        try:
            return call()
        except Exception as error:  # MLflow's and its transports' many kinds
            if not self.was_told:
                warnings.warn(
                    f"MLflow does not answer, {self.work} goes on and logs at its end: {_first_line(error)}", stacklevel=3
                )
            self.was_told = True
            return None
