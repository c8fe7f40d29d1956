"""Equal error rates against brute force; intervals that hold what they promise."""

import dataclasses
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainers.scoring.errors import accuracy, equal_error_rate, smallest_detection_cost
from trainers.scoring.metrics import bootstrap, changes, detection_costs, draw_speakers, rates, resampled, worst_speakers
from trainers.scoring.outcome import Outcome, parts

Array = NDArray[Any]


def brute_force(scores: Array, same: Array) -> float:
    """Both error rates at every threshold, joined by straight lines; the point where the lines cross."""
    points = []
    for threshold in [np.inf, *sorted(set(scores.tolist()), reverse=True)]:
        accepted = scores >= threshold
        points.append((np.mean(accepted[~same]), np.mean(~accepted[same])))
    for (fa, fr), (next_fa, next_fr) in pairwise(points):
        if fa < fr and next_fa >= next_fr:
            share = (fr - fa) / ((fr - fa) + (next_fa - next_fr))
            return float(100 * (fa + share * (next_fa - fa)))
    raise AssertionError("the lines do not cross")


trial_lists = st.lists(st.tuples(st.integers(-5, 5), st.booleans(), st.integers(1, 4)), min_size=2, max_size=40)


def arrays(trials: list[tuple[int, bool, int]]) -> tuple[Array, Array, Array]:
    scores, same, counts = (np.array(column) for column in zip(*trials, strict=True))
    assume(same.any() and not same.all())
    return scores.astype(float), same.astype(bool), counts


@given(trial_lists)
def test_equal_error_rate_is_that_of_brute_force_ties_included(trials: list[tuple[int, bool, int]]) -> None:
    scores, same, _ = arrays(trials)
    assert equal_error_rate(scores, same) == pytest.approx(brute_force(scores, same), abs=1e-9)


@given(st.integers(2, 60), st.integers(0, 999))
def test_equal_error_rate_is_that_of_brute_force_without_ties(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    same = np.arange(count) % 3 == 0
    scores = rng.standard_normal(count) + same
    assert equal_error_rate(scores, same) == pytest.approx(brute_force(scores, same), abs=1e-9)


@given(trial_lists, st.sampled_from((0.01, 0.05, 0.5, 0.9)))
def test_the_smallest_detection_cost_is_that_of_brute_force(trials: list[tuple[int, bool, int]], prior: float) -> None:
    scores, same, _ = arrays(trials)
    costs = []
    for threshold in (np.inf, *scores):
        accepted = scores >= threshold
        costs.append(prior * np.mean(~accepted[same]) + (1 - prior) * np.mean(accepted[~same]))
    assert smallest_detection_cost(scores, same, prior) == pytest.approx(min(costs) / min(prior, 1 - prior), abs=1e-9)


@given(trial_lists)
def test_weights_are_repeated_trials(trials: list[tuple[int, bool, int]]) -> None:
    scores, same, counts = arrays(trials)
    repeated = equal_error_rate(np.repeat(scores, counts), np.repeat(same, counts))
    assert equal_error_rate(scores, same, counts.astype(float)) == pytest.approx(repeated, abs=1e-9)
    assert accuracy(same, counts.astype(float)) == pytest.approx(accuracy(np.repeat(same, counts)), abs=1e-9)


@given(trial_lists)
def test_a_weight_of_zero_is_no_trial(trials: list[tuple[int, bool, int]]) -> None:
    scores, same, counts = arrays(trials)
    kept = counts > 1
    assume(same[kept].any() and not same[kept].all())
    assert equal_error_rate(scores, same, kept.astype(float)) == pytest.approx(equal_error_rate(scores[kept], same[kept]), abs=1e-9)


@given(trial_lists, st.permutations(range(40)))
def test_neither_order_nor_scale_matters(trials: list[tuple[int, bool, int]], order: list[int]) -> None:
    scores, same, _ = arrays(trials)
    expected = equal_error_rate(scores, same)
    picked = [i for i in order if i < len(scores)]
    assert equal_error_rate(scores[picked], same[picked]) == pytest.approx(expected, abs=1e-9)
    for changed in (3 * scores - 7, scores**3, np.exp(scores)):
        assert equal_error_rate(changed, same) == pytest.approx(expected, abs=1e-9)
    assert equal_error_rate(-scores, ~same) == pytest.approx(expected, abs=1e-9)  # the other kind, seen from the other end


def test_known_equal_error_rates() -> None:
    same = np.array([True, True, False, False])
    assert equal_error_rate(np.array([0.9, 0.8, 0.2, 0.1]), same) == 0
    assert equal_error_rate(np.array([0.1, 0.2, 0.8, 0.9]), same) == 100
    assert equal_error_rate(np.array([0.9, 0.2, 0.8, 0.1]), same) == 50
    assert equal_error_rate(np.zeros(4), same) == 50  # all scores alike tell nothing
    rng = np.random.default_rng(0)
    assert equal_error_rate(rng.random(20_000), np.arange(20_000) % 2 == 0) == pytest.approx(50, abs=2)
    shifted = rng.standard_normal(100_000) + 2 * (np.arange(100_000) % 2 == 0)
    assert equal_error_rate(shifted, np.arange(100_000) % 2 == 0) == pytest.approx(15.87, abs=0.4)  # the normal tail beyond 1


@pytest.mark.parametrize("same", [[True, True], [False, False]])
def test_one_kind_of_trial_alone_has_no_rate(same: list[bool]) -> None:
    with pytest.raises(ValueError, match="same and of different speakers"):
        equal_error_rate(np.array([0.1, 0.2]), np.array(same))


def test_accuracy_is_a_percentage() -> None:
    assert accuracy(np.array([True, True, False, True])) == 75
    assert accuracy(np.array([True, False]), np.array([3.0, 1.0])) == 75


def outcome(speakers: int, seed: int, *, skill: float = 0.8, clips: int = 12, trials: int = 16) -> Outcome:
    """Speakers differ: each one's clips are right with a chance of his own, around `skill`; so do their trials."""
    rng = np.random.default_rng(seed)
    ease = np.clip(rng.normal(skill, 0.12, speakers), 0, 1)
    clip_speakers = np.repeat(np.arange(speakers), clips)
    enrol = np.repeat(np.arange(speakers), trials)
    same = np.arange(len(enrol)) % 2 == 0
    others = (enrol + rng.integers(1, speakers, len(enrol))) % speakers
    return Outcome(
        correct=rng.random(len(clip_speakers)) < ease[clip_speakers],
        clip_speakers=clip_speakers,
        trial_scores=rng.standard_normal(len(enrol)) + 4 * ease[enrol] * same,
        same=same,
        enrol_speakers=enrol,
        test_speakers=np.where(same, enrol, others),
    )


def test_intervals_hold_the_value_and_the_figures_are_those_of_the_whole() -> None:
    one = outcome(12, 0)
    keyword, error = rates(one)
    assert keyword.value == accuracy(one.correct)
    assert error.value == equal_error_rate(one.trial_scores, one.same)
    for rate in (keyword, error):
        assert 0 <= rate.low < rate.value < rate.high <= 100
    assert rates(one) == (keyword, error)


def test_intervals_mostly_hold_the_truth() -> None:
    """Truth: the accuracy of very many such speakers. 95 % is for many speakers; with 30 a little less may be held."""
    truth = accuracy(outcome(20_000, 1).correct)
    inside = 0
    for seed in range(60):
        one = outcome(30, 100 + seed, trials=2)
        resampled, _ = bootstrap(one, draw_speakers(one)[:200])
        low, high = np.percentile(resampled, (2.5, 97.5))
        inside += low <= truth <= high
    assert 50 <= inside <= 60


def test_intervals_widen_with_fewer_speakers() -> None:
    widths = []
    for speakers in (6, 24, 96):
        found = [rates(outcome(speakers, seed)) for seed in range(2)]
        widths.append([np.mean([rate.high - rate.low for rate in column]) for column in zip(*found, strict=True)])
    assert (np.diff(np.array(widths), axis=0) < 0).all()


def test_a_resample_is_the_outcome_of_the_speakers_drawn() -> None:
    """Accuracy and rate of a draw, from clips and trials written out as often as they count."""
    one = outcome(5, 3)
    drawn = np.array([[2, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 3, 2, 0]])
    accuracies, errors = bootstrap(one, drawn)
    for counts, found, error in zip(drawn, accuracies, errors, strict=True):
        assert found == pytest.approx(accuracy(np.repeat(one.correct, counts[one.clip_speakers])))
        twice = counts[one.enrol_speakers] * np.where(one.same, 1, counts[one.test_speakers])
        expected = equal_error_rate(np.repeat(one.trial_scores, twice), np.repeat(one.same, twice))
        assert error == pytest.approx(expected, abs=1e-9)


def test_a_speaker_that_is_drawn_alone_is_tried_against_all_others() -> None:
    one = outcome(4, 0)
    _, errors = bootstrap(one, np.array([[4, 0, 0, 0]]))
    own = (one.enrol_speakers == 0) | (one.test_speakers == 0)
    assert errors[0] == pytest.approx(equal_error_rate(one.trial_scores[own], one.same[own]))
    few = outcome(2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keyword, error = rates(few)
    assert keyword.low < keyword.high and error.low < error.high


def test_draws_without_trials_of_one_person_take_nothing_from_other_corpora() -> None:
    """Of a corpus where half of the speakers have no trials of their own."""
    few, many = outcome(2, 0), outcome(12, 1)
    lacking = dataclasses.replace(few, same=few.same & (few.enrol_speakers == 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = resampled([together(lacking, lacking, many)])
        assert all(np.isfinite([rate.low, rate.high]).all() for rate in found.rates())
    assert np.isfinite(found.drawn).all()


def test_every_draw_has_as_many_speakers_as_there_are() -> None:
    one = outcome(7, 0)
    drawn = draw_speakers(one)
    assert drawn.shape == (1000, 7)
    assert (drawn.sum(1) == 7).all()
    assert np.array_equal(drawn, draw_speakers(one))
    assert not np.array_equal(drawn, draw_speakers(one, seed=1))
    np.testing.assert_allclose(drawn.mean(0), 1, atol=0.15)


def test_a_model_differs_from_itself_by_exactly_nothing() -> None:
    one = outcome(10, 0)
    for change in changes([one], [one]):
        assert (change.value, change.low, change.high) == (0, 0, 0)


def test_the_worst_quarter_of_speakers_is_heard_worse_than_all() -> None:
    for speakers in (4, 23):
        one = outcome(speakers, 0)
        each = sorted(100 * one.correct[one.clip_speakers == number].mean() for number in range(speakers))
        found = worst_speakers(one)
        assert found and (found["speakers"], found["of"]) == (speakers // 4, speakers)
        assert found["accuracy"] == pytest.approx(np.mean(each[: speakers // 4]), abs=0.01)
    assert worst_speakers(outcome(3, 0)) is None


def test_a_paired_interval_sees_what_two_intervals_do_not() -> None:
    """A student that misses one clip of each speaker more is worse for certain, though speakers differ by far more."""
    base = outcome(16, 0, clips=20)
    correct = base.correct.copy()
    for speaker in range(16):
        right = np.flatnonzero((base.clip_speakers == speaker) & base.correct)
        correct[right[0]] = False
    worse = dataclasses.replace(base, correct=correct)
    (ours, _), (theirs, _) = rates(worse), rates(base)
    assert ours.high > theirs.low  # the two intervals overlap
    change, unchanged = changes([worse], [base])
    assert change.value == pytest.approx(-5)
    assert (change.low, change.high) == (pytest.approx(-5), pytest.approx(-5))
    assert (unchanged.value, unchanged.low, unchanged.high) == (0, 0, 0)
    back, _ = changes([base], [worse])
    assert back.value == -change.value


@settings(max_examples=5)
@given(st.integers(0, 99))
def test_a_change_is_the_difference_of_the_figures(seed: int) -> None:
    ours, base = outcome(8, seed, trials=6), outcome(8, seed + 1, skill=0.6, trials=6)
    keyword, error = changes([ours], [base])
    assert keyword.value == pytest.approx(accuracy(ours.correct) - accuracy(base.correct))
    assert keyword.low <= keyword.value <= keyword.high
    assert error.low <= error.high


def test_several_seeds_are_averaged_and_widen_the_interval_by_how_they_differ() -> None:
    one, other = outcome(8, 0, skill=0.7), outcome(8, 1, skill=0.9)
    both = rates(one, other)
    for mean, first, second in zip(both, rates(one), rates(other)):
        assert mean.value == pytest.approx((first.value + second.value) / 2)
        assert mean.low <= mean.value <= mean.high
    assert rates(one, one) == rates(one)
    alike, apart = changes([one, one], [one, one])[0], changes([one, other], [one, one])[0]
    assert (alike.low, alike.high) == (0, 0) and apart.high - apart.low > 5


def together(*outcomes: Outcome) -> Outcome:
    """Those of several corpora, c0, c1, ..., as one: speakers of each after those of the one before."""
    counts = [1 + max(int(o.clip_speakers.max(initial=-1)), int(o.enrol_speakers.max(initial=-1))) for o in outcomes]
    firsts = np.cumsum([0, *counts[:-1]])
    fields: dict[str, Any] = {}
    for name in ("correct", "trial_scores", "same"):
        fields[name] = np.concatenate([getattr(o, name) for o in outcomes])
    for name in ("clip_speakers", "enrol_speakers", "test_speakers"):
        fields[name] = np.concatenate([getattr(o, name) + first for o, first in zip(outcomes, firsts, strict=True)])
    names = np.array([f"c{number}" for number in range(len(outcomes))])
    return Outcome(**fields, speaker_corpora=np.repeat(np.arange(len(outcomes)), counts), corpora=names)


def without_keywords(one: Outcome) -> Outcome:
    return dataclasses.replace(one, correct=one.correct[:0], clip_speakers=one.clip_speakers[:0])


sizes = st.lists(st.integers(3, 9), min_size=2, max_size=3)


@settings(max_examples=10)
@given(sizes, st.integers(0, 99))
def test_each_corpus_counts_once_and_is_what_it_is_alone(speakers: list[int], seed: int) -> None:
    alone = [outcome(count, seed + i, skill=0.5 + 0.2 * i, clips=4 * (i + 1), trials=6) for i, count in enumerate(speakers)]
    found = resampled([together(*alone)])
    for kind, one in zip(("accuracy", "eer"), found.rates()):
        own = [found.by_corpus()[f"c{i}"][kind] for i in range(len(alone))]
        assert [rate.value for rate in own] == [rates(o)[kind == "eer"].value for o in alone]
        assert one.value == pytest.approx(np.mean([rate.value for rate in own]))
        assert min(rate.low for rate in own) <= one.low <= one.high <= max(rate.high for rate in own)
    assert found.by_corpus()["c0"] == dict(zip(("accuracy", "eer"), rates(alone[0])))  # to the last digit
    assert resampled(alone[:1]).by_corpus() == {}


@settings(max_examples=10)
@given(sizes, st.integers(0, 99), st.randoms(use_true_random=False))
def test_neither_the_order_nor_the_number_of_a_corpus_clips_matters(speakers: list[int], seed: int, random: Any) -> None:
    alone = [outcome(count, seed + i, trials=6) for i, count in enumerate(speakers)]
    whole = together(*alone)
    clips, trials = (np.array(random.sample(range(count), count)) for count in (len(whole.correct), len(whole.same)))
    fields = {name: getattr(whole, name)[clips] for name in ("correct", "clip_speakers")}
    fields |= {name: getattr(whole, name)[trials] for name in ("trial_scores", "same", "enrol_speakers", "test_speakers")}
    assert rates(dataclasses.replace(whole, **fields)) == rates(whole)
    doubled = {name: np.repeat(getattr(alone[-1], name), 2) for name in vars(alone[-1]) if "corpora" not in name}
    again = together(*alone[:-1], Outcome(**doubled))
    for one, two in zip(rates(again), rates(whole)):
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(two), abs=1e-9)


@settings(max_examples=10)
@given(st.integers(0, 99))
def test_speakers_are_redrawn_within_their_corpus_and_rates_are_averaged(seed: int) -> None:
    """The oracle: each corpus resampled by itself, clips and trials written out as often as they count."""
    alone = [outcome(4, seed, trials=6), outcome(7, seed + 1, trials=6)]
    _, drawn = resampled([together(*alone)]).macro()
    for i in (0, 1, 500):
        figures = []
        for place, one in enumerate(alone):
            counts = draw_speakers(one, [0, place])[i]
            assert counts.sum() == len(counts)
            times = counts[one.enrol_speakers] * np.where(one.same, 1, counts[one.test_speakers])
            same = np.repeat(one.same, times)
            error = brute_force(np.repeat(one.trial_scores, times), same) if same.any() and not same.all() else np.nan
            figures.append([accuracy(np.repeat(one.correct, counts[one.clip_speakers])), error])
        if np.isfinite(figures).all():  # else another draw stands there
            np.testing.assert_allclose(drawn[:, i], np.mean(figures, 0), atol=1e-9)


def test_corpora_are_redrawn_apart() -> None:
    """Two corpora of one size do not see the same draws: their mean is surer than either."""
    one = outcome(8, 0)
    found = resampled([together(one, one)])
    alone, whole = found.by_corpus()["c0"]["accuracy"], found.rates()[0]
    assert whole.value == alone.value and whole.high - whole.low < 0.9 * (alone.high - alone.low)


def test_a_corpus_without_keywords_has_its_voices_alone() -> None:
    words, voices = outcome(6, 0), without_keywords(outcome(9, 1))
    found = resampled([together(words, voices)])
    assert set(found.by_corpus()["c1"]) == {"eer"} and set(found.by_corpus()["c0"]) == {"accuracy", "eer"}
    keyword, error = found.rates()
    assert keyword == rates(words)[0]
    assert error.value == pytest.approx(np.mean([equal_error_rate(o.trial_scores, o.same) for o in (words, voices)]))
    assert set(detection_costs(together(words, voices))) == {"c0", "c1"}


def test_changes_are_paired_within_each_corpus() -> None:
    base = together(outcome(8, 0), outcome(5, 1))
    for change in changes([base], [base]):
        assert (change.value, change.low, change.high) == (0, 0, 0)
    worse = dataclasses.replace(base, correct=base.correct & (base.speaker_corpora[base.clip_speakers] == 0))
    lost = (resampled([worse]) - resampled([base])).by_corpus()
    assert dataclasses.astuple(lost["c0"]["accuracy"]) == (0, 0, 0) and lost["c1"]["accuracy"].high < -50
    with pytest.raises(ValueError, match="scores of other corpora cannot be compared, c0; c1 and one corpus: begin a new study"):
        changes([base], [outcome(8, 0)])


def test_a_trial_across_corpora_is_nothing_that_an_outcome_has() -> None:
    whole = together(outcome(3, 0), outcome(3, 1))
    with pytest.raises(AssertionError, match="a trial is of one corpus"):
        parts(dataclasses.replace(whole, enrol_speakers=whole.enrol_speakers[::-1]))
