"""When a search will end, and what a plan promises."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from nas.planning.forecast import Forecast
from nas.planning.pace import Pace, Sizes
from nas.planning.plan import make_plan
from nas.planning.planning import describe_plan
from nas.study.budget import Account, Budget, Ledger
from nas.study.config import StudyConfig
from trainers.learning.recipe import Recipe

PACE = Pace(per_clip=1e-3, per_mac=5e-11, scored=1000, batch=32)
SIZES = Sizes(typical=50e6, smallest=8e6, sandwich=150e6, references=(280e6, 200e6, 500e6))


def account(folder: Path, minutes: float, workers: int = 2) -> Account:
    budget = Budget(resource="cpu", seconds=60 * minutes)
    return Account(budget=budget, ledger=Ledger(folder / "ledger.jsonl"), resources=1.0, workers=workers)


def test_the_end_is_corrected_in_both_directions_and_only_where_it_is_off(tmp_path: Path) -> None:
    now, said = 0.0, io.StringIO()
    own = account(tmp_path, 20)
    console = Console(file=said, width=120)
    forecast = Forecast(account=own, console=console, alone=240.0, clock=lambda: now)
    assert forecast.to_go() == 240 + 960 / 2
    own.charge("tutor", 240.0)
    now = 250.0
    forecast.after("the tutor")
    assert said.getvalue() == ""
    now = 450.0  # a worker was idle
    own.charge("candidates", 200.0)
    forecast.after("the candidates")
    assert said.getvalue() == "plan corrected after the candidates: about 6 min to go, not 4 min\n"
    own.charge("candidates", 500.0)
    now = 500.0
    forecast.after("finalists and references")
    assert said.getvalue().splitlines()[1:] == ["plan corrected after finalists and references: about 2 min to go, not 6 min"]


@pytest.mark.parametrize(
    ("minutes", "said"),
    [
        (
            60,
            " finalists and 4 references in 29.1 min, as long as that allows: at least 5 members",
        ),
        (4, "4 references in 2.2 min, and candidates as they were trained: at least 5 members, or all that nothing else beats"),
        (1.2, "and candidates as they were trained: at most 3 members, since the budget is too small for 5"),
    ],
)
def test_a_plan_says_how_many_members_its_budget_buys(tmp_path: Path, minutes: float, said: str) -> None:
    """And a small budget goes on."""
    own, config = account(tmp_path, minutes), StudyConfig(name="a")
    plan = make_plan(config, own.budget, 0.0, PACE, SIZES)
    assert said in describe_plan(plan, config, own, 60.0)


def test_a_plan_says_what_it_chose_and_why(tmp_path: Path) -> None:
    for minutes, why in ((8, "no shared student, which would take"), (3000, "a shared student spares candidates")):
        own, config = account(tmp_path, minutes), StudyConfig(name="a", recipe=Recipe(fit_windows=0))
        plan = make_plan(config, own.budget, 0.0, PACE, SIZES)
        assert (plan.spared > 0) == (plan.shared_steps > 0)
        last = describe_plan(plan, config, own, 60.0).splitlines()[-1]
        assert last.startswith("  gp proposes, which found most in replayed searches; ") and why in last
