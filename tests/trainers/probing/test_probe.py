"""Linear probes: they find what is linearly there and nothing else, choose by validation alone, and compare in pairs."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from nas.cli.probe import probe
from trainers.learning.batches import cut, window_starts
from trainers.probing.linear import DECAYS, SHRINKAGES, SMALLEST_DEVIATION, fit_keywords, fit_speakers
from trainers.probing.pooled import Bench, Subject, log_mel_subject, pooled_states, random_subject, teacher_subject
from trainers.probing.probe import Probed, _keyword_numbers, _of_clips, _rates_content, chosen, probe_subject, probe_teachers
from trainers.scoring.errors import equal_error_rate
from trainers.scoring.metrics import rates, resampled
from trainers.speech.corpora import Corpus
from trainers.speech.trials import make_trials
from trainers.teacher.teacher import Teacher

CPU = torch.device("cpu")
WINDOW = 4880


@pytest.fixture(scope="module")
def bench(tiny_corpus: Corpus) -> Bench:
    return bench_of(tiny_corpus)


def bench_of(corpus: Corpus, seeds: tuple[int, ...] = (0, 1)) -> Bench:
    trials = {split: make_trials(corpus, split, seed=0) for split in ("val", "test")}
    return Bench(corpus=corpus, trials=trials, window=WINDOW, seeds=seeds)


def fabricated(bench: Bench, *, told: bool = True, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Two states: noise, and noise in which (when `told`) each clip's keyword and speaker stand, in unlike units."""
    rng = np.random.default_rng(seed)
    words, voices = np.array([*bench.corpus.keyword_labels, None], object), sorted({str(s) for s in bench.corpus.speakers})
    states = rng.standard_normal((2, len(bench.windows), 24)).astype(np.float32)
    voice_of = {voice: rng.standard_normal(8) for voice in voices}
    for i, row in enumerate(bench.clips):
        if told:
            states[1, i, :4] = 3 * (words == bench.corpus.keywords[row]) + 0.2 * rng.standard_normal(4)
            states[1, i, 4:12] = voice_of[str(bench.corpus.speakers[row])] + 0.05 * rng.standard_normal(8)
    return states * np.float32(1000) ** np.linspace(-1, 1, 24, dtype=np.float32) + 50


def silent(name: str = "fabricated") -> Subject:
    def never(audio: Tensor) -> Sequence[Tensor]:
        raise AssertionError("its states are at hand")

    return Subject(name=name, key=name, states=never)


def probed(bench: Bench, **options: Any) -> Probed:
    return probe_subject(silent(), fabricated(bench, **options), bench, CPU)


def test_what_is_linearly_in_a_layer_is_found_and_the_layer_is_chosen(bench: Bench) -> None:
    found = probed(bench)
    assert chosen(found.keywords) == chosen(found.speakers) == 1
    assert found.keywords[1].error == 0
    assert found.keywords[0].error > 40  # of 67 by chance
    assert found.speakers[1].error < 10 < 30 < found.speakers[0].error
    (accuracies, errors), _ = resampled(found.outcomes).macro()
    assert accuracies.mean() > 80  # of 33 by chance
    assert errors.mean() < 10
    assert len(found.outcomes) == len(found.keywords[0].fits) == len(bench.seeds)


def test_nothing_is_found_where_nothing_is(bench: Bench) -> None:
    found = [probed(bench, told=False, seed=seed) for seed in range(3)]
    accuracies, errors = np.mean([resampled(p.outcomes).macro()[0].mean(1) for p in found], 0)
    assert 18 < accuracies < 50  # a third by chance, 28 clips
    assert 40 < errors < 60


def test_random_labels_are_not_learnt() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1200, 20)).astype(np.float32), rng.integers(0, 4, 1200)
    for fit in fit_keywords(x[:600], y[:600], seed=0):
        assert 18 < 100 * (fit(x[600:]).argmax(1) == y[600:]).mean() < 32


def test_the_keyword_probe_comes_near_to_converged_logistic_regression() -> None:
    """The oracle: L-BFGS on the same loss with the same penalty."""
    rng = np.random.default_rng(1)
    z = rng.standard_normal((900, 30))
    y = (z @ rng.standard_normal((30, 5)) + 4 * rng.standard_normal((900, 5))).argmax(1)
    x = (z * rng.uniform(0.1, 9, 30) + 5).astype(np.float32)
    standard = torch.from_numpy((x - x[:600].mean(0)) / x[:600].std(0))
    for decay, fit in zip(DECAYS, fit_keywords(x[:600], y[:600], seed=0)):
        exact = converged(standard[:600], torch.from_numpy(y[:600]), decay)(standard[600:]).detach().numpy()
        said = fit(x[600:])
        correlation = np.corrcoef((said - said.mean(1, keepdims=True)).ravel(), (exact - exact.mean(1, keepdims=True)).ravel())
        assert correlation[0, 1] > 0.99
        assert abs((said.argmax(1) == y[600:]).mean() - (exact.argmax(1) == y[600:]).mean()) < 0.025


def converged(x: Tensor, y: Tensor, decay: float) -> torch.nn.Linear:
    head = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(head(x), y) + decay / 2 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return head


def test_discriminants_equal_the_generalised_eigenvectors() -> None:
    """The oracle: scatter matrices by definition, scipy's symmetric generalised eigenproblem."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 7, 300)
    x = (rng.standard_normal((7, 12))[labels] + rng.standard_normal((300, 12)) * rng.uniform(0.5, 3, 12) + 4).astype(np.float32)
    w = np.random.default_rng(5).exponential(size=300)
    w /= w.sum()
    z = (x - x.mean(0)) / x.std(0)
    centres = np.stack([np.average(z[labels == k], axis=0, weights=w[labels == k]) for k in range(7)])
    middle = np.average(z, axis=0, weights=w)
    within = sum(w[i] * np.outer(z[i] - centres[labels[i]], z[i] - centres[labels[i]]) for i in range(300))
    between = sum(w[labels == k].sum() * np.outer(centres[k] - middle, centres[k] - middle) for k in range(7))
    for shrinkage, fit in zip(SHRINKAGES, fit_speakers(x, labels, seed=5)):
        shrunk = (1 - shrinkage) * within + (shrinkage * np.trace(within) / 12 + SMALLEST_DEVIATION) * np.eye(12)
        ratios, axes = scipy.linalg.eigh(between, shrunk)
        wanted = (z - middle) @ (axes * np.sqrt(ratios.clip(0) / (1 + ratios.clip(0))))
        np.testing.assert_allclose(fit(x) @ fit(x).T, wanted @ wanted.T, rtol=1e-3, atol=1e-3)  # cosines see products alone


def test_discriminants_tell_new_speakers_apart_where_cosines_alone_do_not() -> None:
    rng = np.random.default_rng(3)
    speakers = np.repeat(np.arange(60), 12)
    x = np.concatenate([rng.standard_normal((60, 6))[speakers], 5 * rng.standard_normal((720, 30))], 1).astype(np.float32)
    x[:, :6] += 0.2 * rng.standard_normal((720, 6)).astype(np.float32)
    left, right = np.triu_indices(240, 1)
    same = speakers[480:][left] == speakers[480:][right]

    def error(v: np.ndarray[Any, Any]) -> float:
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
        return equal_error_rate((v[left] * v[right]).sum(1), same)

    fits = fit_speakers(x[:480], speakers[:480], seed=0)
    assert max(error(fit(x[480:])) for fit in fits) < 12 < 40 < error(x[480:] - x.mean(0))
    assert all(fit.weight.shape == (36, 36) for fit in fits)


def test_voices_are_told_apart_within_a_corpus() -> None:
    """Many corpora whose rooms differ in as many directions as an embedding has: those take no place from the voices."""
    rng = np.random.default_rng(4)
    speakers, corpora = np.repeat(np.arange(160), 6), np.arange(160) // 2
    voices = rng.standard_normal((160, 4))[speakers] + 0.3 * rng.standard_normal((960, 4))
    rooms = 3 * rng.standard_normal((80, 120))[corpora[speakers]] + rng.standard_normal((960, 120))
    x = np.concatenate([voices, rooms], 1).astype(np.float32)
    plain, within = (fit_speakers(x, speakers, 0, of)[3].weight for of in (None, corpora))
    shares = [np.square(weight[:4]).sum() / np.square(weight).sum() for weight in (plain, within)]
    assert shares[1] > 2 * shares[0]


def test_one_window_a_speaker_gives_no_spread_within_and_no_failure() -> None:
    x = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    assert all(np.isfinite(fit(x)).all() for fit in fit_speakers(x, np.arange(9), seed=0))


def test_a_seed_gives_one_probe_and_another_seed_another() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 10)).astype(np.float32), rng.integers(0, 3, 200)
    for fit in (fit_keywords, fit_speakers):
        first, again, other = ([f.weight for f in fit(x, y, seed)] for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_the_choice_does_not_see_the_test_split(bench: Bench) -> None:
    corpus, rng = bench.corpus, np.random.default_rng(0)
    states, keywords = fabricated(bench), corpus.keywords.copy()
    rows = corpus.rows("test", with_keyword=True)
    keywords[rows] = rng.permutation(keywords[rows])
    swapped = {**bench.trials, "test": dataclasses.replace(bench.trials["test"], same=~bench.trials["test"].same)}
    strange = states.copy()
    strange[:, np.isin(bench.clips, corpus.rows("test"))] *= -3
    other = dataclasses.replace(bench, corpus=dataclasses.replace(corpus, keywords=keywords), trials=swapped)
    ours, theirs = probe_subject(silent(), states, bench, CPU), probe_subject(silent(), strange, other, CPU)
    for a, b in zip((*ours.keywords, *ours.speakers), (*theirs.keywords, *theirs.speakers), strict=True):
        assert (a.strength, a.errors) == (b.strength, b.errors)
        np.testing.assert_array_equal([fit.weight for fit in a.fits], [fit.weight for fit in b.fits])
    assert rates(*ours.outcomes)[0].value > rates(*theirs.outcomes)[0].value + 30


def test_pooled_states_are_means_and_deviations_of_each_window(tiny_teacher: Teacher, bench: Bench, tmp_path: Path) -> None:
    states = pooled_states(teacher_subject(tiny_teacher), bench, tmp_path, CPU)
    where = [(int(r), s) for r in bench.rows for s in window_starts(bench.corpus.length(int(r)), WINDOW)]
    assert bench.windows == where
    assert states.shape == (4, len(where), 2 * 48)
    for i in (0, 9, 10, len(where) - 1):
        audio = torch.from_numpy(cut(bench.corpus, *where[i], WINDOW))[None]
        with torch.no_grad():
            for layer, state in enumerate(tiny_teacher.encoder(audio)):
                pooled = np.concatenate([state[0].numpy().mean(0), state[0].numpy().std(0)])
                np.testing.assert_allclose(states[layer, i], pooled, atol=2e-5)


def test_the_cache_is_used_again_and_only_for_the_same(bench: Bench, tmp_path: Path) -> None:
    calls = []

    def subject(key: str) -> Subject:
        def states(audio: Tensor) -> list[Tensor]:
            calls.append(key)
            return [audio[:, :40].unflatten(1, (10, 4))]

        return Subject(name="a name is not in the key", key=key, states=states)

    ticks: list[tuple[int, int]] = []
    first = pooled_states(subject("a"), bench, tmp_path, CPU, lambda done, total: ticks.append((done, total)))
    assert ticks[-1] == (len(bench.windows), len(bench.windows))
    computed = len(calls)
    np.testing.assert_array_equal(pooled_states(silent("a"), bench, tmp_path, CPU), first)
    assert len(calls) == computed
    others = (
        dataclasses.replace(bench, window=WINDOW + 320),
        dataclasses.replace(bench, corpus=dataclasses.replace(bench.corpus, digest="another")),
        dataclasses.replace(
            bench, corpus=dataclasses.replace(bench.corpus, keywords=np.full(101, None), speakers=np.full(101, None))
        ),
    )
    for other in others:
        pooled_states(subject("a"), other, tmp_path, CPU)
    pooled_states(subject("b"), bench, tmp_path, CPU)
    assert len(list((tmp_path / "probe").iterdir())) == 5  # and nothing unfinished


def test_an_interrupted_cache_is_made_again(bench: Bench, tmp_path: Path) -> None:
    def stops(audio: Tensor) -> list[Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pooled_states(Subject(name="log-mel", key="log-mel", states=stops), bench, tmp_path, CPU)
    assert list((tmp_path / "probe").iterdir()) == []
    assert pooled_states(log_mel_subject(), bench, tmp_path, CPU).shape == (1, len(bench.windows), 160)


def test_a_random_copy_has_the_teachers_shapes_its_own_weights_and_leaves_the_generator_alone(tiny_teacher: Teacher) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    copies = [random_subject(tiny_teacher, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    audio = torch.randn(2, WINDOW, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, again, other = (copy.states(audio) for copy in copies)
        taught = teacher_subject(tiny_teacher).states(audio)
    assert [s.shape for s in first] == [s.shape for s in taught]
    assert torch.equal(first[-1], again[-1])
    assert not torch.allclose(first[-1], other[-1])
    assert not torch.allclose(first[-1], taught[-1])
    assert len({copy.key for copy in copies}) == 2


def test_resamples_draw_speakers_and_seeds(bench: Bench) -> None:
    good, poor = probed(bench).outcomes, probed(bench, told=False).outcomes
    values, drawn = resampled(good[:1]).macro()
    accuracy, eer = rates(good[0])
    assert values[:, 0].tolist() == [accuracy.value, eer.value]
    np.testing.assert_allclose(np.nanpercentile(drawn, (2.5, 97.5), axis=1).T, [[r.low, r.high] for r in (accuracy, eer)])
    mixed, apart = resampled([good[0], poor[0]]).macro(), resampled(poor[:1]).macro()
    assert mixed[0].mean(1) == pytest.approx([accuracy.value / 2 + apart[0][0, 0] / 2, eer.value / 2 + apart[0][1, 0] / 2])
    assert np.nanstd(mixed[1][0]) > np.nanstd(apart[1][0])  # an unlucky seed widens the interval
    assert np.nanmax(np.abs((resampled(poor) - resampled(poor)).drawn)) == 0


@pytest.fixture(scope="module")
def content(tiny_teacher: Teacher, bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    again = dataclasses.replace(tiny_teacher, name="the same")
    return probe_teachers([tiny_teacher, again], bench, tmp_path_factory.mktemp("cache"), CPU)


def test_differences_are_paired_and_those_of_equals_are_nothing(content: dict[str, Any], tiny_teacher: Teacher) -> None:
    assert [s["name"] for s in content["subjects"]] == [tiny_teacher.name, "random copy", "log-mel", "the same"]
    assert [(d["of"], d["minus"]) for d in content["differences"]] == [
        (tiny_teacher.name, name) for name in ("random copy", "log-mel", "the same")
    ]
    first, *others = (s["test"] for s in content["subjects"])
    for difference, other in zip(content["differences"], others, strict=True):
        for name in ("keyword_accuracy", "eer"):
            assert difference[name]["value"] == pytest.approx(first[name]["value"] - other[name]["value"])
            assert difference[name]["low"] <= difference[name]["high"]
    assert {content["differences"][-1][name][of] for name in ("keyword_accuracy", "eer") for of in ("value", "low", "high")} == {0}


def test_the_content_holds_every_layer_and_seed(content: dict[str, Any]) -> None:
    assert json.loads(json.dumps(content)) == content
    assert [len(s["layers"]) for s in content["subjects"]] == [4, 4, 1, 4]
    for subject in content["subjects"]:
        for task, name, best in (("keyword_layer", "keyword_accuracy", max), ("speaker_layer", "eer", min)):
            means = [layer[name]["mean"] for layer in subject["layers"]]
            assert means[subject[task]] == best(means)
            assert all(len(layer[name]["seeds"]) == 2 for layer in subject["layers"])
            assert len(subject["test"][name]["seeds"]) == 2
    assert content["subjects"][0]["layers"] == content["subjects"][3]["layers"]
    assert content["synthetic"] is True
    assert content["seeds"] == [0, 1]


def test_corpora_are_probed_one_by_one_and_validation_chooses_by_their_mean(bench: Bench) -> None:
    """Corpus a has one speaker of each split that is scored, and so no trials there."""
    corpus = bench.corpus
    numbers = np.array([int(str(speaker)[-1] in "01") for speaker in corpus.speakers])
    two = bench_of(dataclasses.replace(corpus, corpora=numbers, names=("a.parquet", "b.parquet")), seeds=(0,))
    with pytest.raises(ValueError, match="allows no trials"):
        bench_of(dataclasses.replace(corpus, corpora=np.arange(len(corpus)), names=tuple(map(str, range(len(corpus))))))
    found = probed(two)
    val = corpus.rows("val", with_keyword=True)
    heard, wanted = _of_clips(fabricated(two)[0], two, val), _keyword_numbers(two, val)
    right = found.keywords[0].fits[0](heard).argmax(1) == wanted
    own = [100 - 100 * right[numbers[val] == number].mean() for number in (0, 1)]
    assert found.keywords[0].error == pytest.approx(np.mean(own))
    assert found.outcomes[0].corpora.tolist() == ["a", "b"]
    content = _rates_content(resampled(found.outcomes))
    assert {name: set(own) for name, own in content["by_corpus"].items()} == {"a": {"accuracy"}, "b": {"accuracy", "eer"}}
    words = [rate["accuracy"]["value"] for rate in content["by_corpus"].values()]
    assert content["keyword_accuracy"]["value"] == pytest.approx(np.mean(words))


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(probe)
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def corpus_file(tiny_corpus: Corpus, tmp_path: Path) -> Path:
    """Where the embedded corpus would lie in the cache."""
    decoded = tiny_corpus.samples[0].path  # <cache>/<hash>/<samples>, the cache beside the Parquet file
    return Path(shutil.copy(decoded.parents[2] / "corpus.parquet", tmp_path / "embedded.parquet"))


def test_the_command_runs_from_a_corpus_to_tables_and_a_file(corpus_file: Path, teacher_folder: Path, tmp_path: Path) -> None:
    common = (str(teacher_folder), "--cache", str(tmp_path), "--seeds", "1", "--window", str(WINDOW))
    out = tmp_path / "probe.json"
    done = run(*common, "--data", str(corpus_file), "--out", str(out))
    assert done.exit_code == 0, done.exception
    assert "synthetic" in done.stdout
    assert "log-mel" in done.stdout and "random copy" in done.stdout and "minus" in done.stdout
    said = run(*common, "--json")  # the embedded corpus: this file, as it lies in the cache already
    assert said.exit_code == 0, said.exception
    written, printed = json.loads(out.read_text()), json.loads(said.stdout)
    del written["seconds"], printed["seconds"]
    assert written == printed
    assert len(list((tmp_path / "probe").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("--seeds", "0"), "--seeds is 0"), (("--window", "9"), "--window is 9"), (("--out", "no/x.json"), "--out")],
)
def test_a_wrong_option_is_refused_by_name(arguments: tuple[str, ...], named: str) -> None:
    error = run(*arguments).exception
    assert isinstance(error, ValueError)
    assert named in str(error)
