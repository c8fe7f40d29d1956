"""MLflow that goes and comes back."""

import warnings

import pytest

from nas.tracking.outage import PAUSE, Outage


class Server:
    """In place of MLflow: what was logged, and how often it was asked."""

    def __init__(self) -> None:
        self.answers, self.asked = True, 0

    def log(self) -> str:
        self.asked += 1
        if not self.answers:
            raise ConnectionError("refused\nand pages of reasons")
        return "run"


def test_it_is_said_once_asked_seldom_and_taken_up_again() -> None:
    now, server = [0.0], Server()
    outage = Outage("the search", lambda: now[0])
    assert outage.passed_over(server.log) == "run"
    server.answers = False
    with pytest.warns(UserWarning, match="the search goes on and logs at its end: refused$"):
        assert outage.passed_over(server.log) is None
    for _ in range(5):  # each attempt would hold the search up
        assert outage.passed_over(server.log) is None
    assert server.asked == 2
    now[0] += PAUSE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outage.passed_over(server.log) is None
    server.answers = True
    assert outage.passed_over(server.log) is None and server.asked == 3
    now[0] += PAUSE
    assert outage.passed_over(server.log) == outage.passed_over(server.log) == "run"
