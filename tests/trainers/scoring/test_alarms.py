"""Thresholds keep their rate of false alarms, are the lowest that do, and are stated only where there is enough speech."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.scoring.alarms import Heard, keyword_thresholds, scores
from trainers.scoring.streams import Said, Stream

HOUR = 3600.0
SAMPLES = np.zeros(1, np.int16)


def heard(said: list[Said], events: list[tuple[float, str, float]]) -> Heard:
    times, keywords, probabilities = zip(*sorted(events)) if events else ((), (), ())
    return Heard(
        stream=Stream(samples=SAMPLES, said=tuple(said)),
        times=np.array(times, float),
        keywords=np.array(keywords, object),
        probabilities=np.array(probabilities, float),
    )


def test_a_word_is_heard_late_missed_or_told_twice() -> None:
    said = [Said("yes", 10, 10.5, 11), Said("no", 20, 20.5, 21), Said("yes", 30, 30.6, 31), Said(None, 40, 3640, 3640)]
    one = heard(said, [(10.8, "yes", 0.9), (10.9, "yes", 0.95), (12.0, "yes", 0.9), (20.7, "yes", 0.9), (33.0, "yes", 0.9)])
    found = scores([one], {"yes": 0.5, "no": 0.5}, 1.0)
    assert found["words"] == 3 and found["missed"]["value"] == pytest.approx(66.67)  # the second yes came too late
    assert found["delay_ms"] == {"median": 300, "ninth_decile": 300}
    assert found["false_alarms_an_hour"]["value"] == pytest.approx(3 / found["hours"], abs=0.01)  # told twice, in no, too late
    assert scores([one], {"yes": None, "no": 0.5}, 1.0)["missed"]["value"] == 100


def test_no_alarm_in_three_hours_is_less_than_one_and_a_quarter_an_hour() -> None:
    one = heard([Said(None, 0, 3 * HOUR, 3 * HOUR)], [])
    assert scores([one], {"yes": 0.5}, 1.0) == {
        "hours": 3.0,
        "words": 0,
        "missed": None,
        "false_alarms_an_hour": {"value": 0.0, "low": 0.0, "high": 1.23},  # 3.69 / 3: Garwood's table
        "delay_ms": None,
    }


def alarms(one: Heard, threshold: float) -> float:
    value: float = scores([one], {"yes": threshold}, 1.0)["false_alarms_an_hour"]["value"]
    return value


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 99)), max_size=60))
def test_the_lowest_threshold_that_keeps_a_rate_from_there_on(drawn: list[tuple[int, int]]) -> None:
    one = heard([Said(None, 0, HOUR, HOUR)], [(float(at), "yes", share / 100) for at, share in dict(drawn).items()])
    (entry,) = keyword_thresholds([one], ["yes"], [4.0], 1.0)
    threshold = entry["keywords"]["yes"]["threshold"]
    higher = [t for t in np.linspace(0, 1, 101) if threshold is None or t >= threshold]
    if threshold is not None:
        assert all(alarms(one, t) <= 4 for t in [threshold, *higher])
        below = [share for share in one.probabilities if share < threshold]
        assert not below or alarms(one, max(below)) > 4
    else:
        assert alarms(one, one.probabilities.max()) > 4


@given(st.integers(0, 99))
def test_the_rate_is_kept_where_there_are_more_probabilities_than_are_tried(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shares = np.round(rng.beta(5, 2, 1500), 4)
    one = heard([Said(None, 0, HOUR, HOUR)], [(2.0 * at, "yes", share) for at, share in enumerate(shares)])
    threshold = keyword_thresholds([one], ["yes"], [4.0], 1.0)[0]["keywords"]["yes"]["threshold"]
    assert alarms(one, threshold) <= 4 < alarms(one, shares[shares < threshold].max())


def test_a_rate_is_stated_where_there_is_enough_other_speech() -> None:
    said = [Said("yes", 0, HOUR, HOUR), Said("no", HOUR, 1.5 * HOUR, 1.5 * HOUR)]
    ten, one = keyword_thresholds([heard(said, [])], ["yes", "no"], [1.0, 10.0], 1.0)
    assert one == {"false_alarms_an_hour": 1.0, "unsupported": "0.5 hours of negatives; 3 are needed"}  # of yes: no's half hour
    assert ten["hours_of_negatives"] == 0.5
    assert ten["keywords"] == {"yes": {"threshold": 0.0, "missed": 100.0}, "no": {"threshold": 0.0, "missed": 100.0}}
