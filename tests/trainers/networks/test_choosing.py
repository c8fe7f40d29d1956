"""What a narrower student takes over: chosen by what is explained together, not by what each does alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainers.networks import choosing
from trainers.networks.choosing import explaining


def left_over(heard: Tensor, made: Tensor) -> float:
    """What the best linear map from `heard`, of zero mean like `made`, does not explain, by torch's own least squares."""
    return float((made - heard @ torch.linalg.lstsq(heard, made).solution).square().sum())


def centred(*shape: int, seed: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x - x.mean(0)


@given(groups=st.integers(2, 6), size=st.integers(1, 3), outputs=st.integers(1, 4), seed=st.integers(0, 1000))
def test_each_choice_is_the_best_beside_those_before_it(groups: int, size: int, outputs: int, seed: int) -> None:
    heard = centred(400, groups * size, seed=seed) @ centred(groups * size, groups * size, seed=seed + 1)
    made = heard @ centred(groups * size, outputs, seed=seed + 2)
    order = explaining(heard, made, size).tolist()
    assert sorted(order) == list(range(groups))
    parts = heard.unflatten(1, (groups, size))
    for at in range(groups - 1):
        left = {g: left_over(parts[:, [*order[:at], g]].flatten(1), made) for g in order[at:]}
        assert left[order[at]] <= min(left.values()) + 0.02 * float(made.square().sum())  # the ridge's part


def test_an_echo_waits_for_what_is_new() -> None:
    strong, weak = centred(300, 1, seed=0), 0.1 * centred(300, 1, seed=1)
    heard = torch.cat([strong, strong, weak], 1)
    assert explaining(heard, heard @ torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 1)[1] == 2


def test_nothing_is_lost_where_many_are_chosen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = centred(900, 300, seed=0)
    heard[:, 7] = 0.0  # a dead channel comes last
    made = heard[:, :40] @ centred(40, 20, seed=1)
    at_once = explaining(heard, made, 1)
    assert sorted(at_once.tolist()) == list(range(300))
    monkeypatch.setattr(choosing, "MOST_CHOSEN", 30)
    cut = explaining(heard, made, 1)
    assert sorted(cut.tolist()) == list(range(300)) and torch.equal(cut[:30], at_once[:30])
    monkeypatch.setattr(choosing, "GROWTH", 300)
    one_by_one = explaining(heard, made, 1)
    assert left_over(heard[:, at_once[:30]], made) <= 1.3 * left_over(heard[:, one_by_one[:30]], made)
