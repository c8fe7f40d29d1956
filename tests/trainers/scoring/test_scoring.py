"""Scoring: a clip is the mean of its windows, a split is its own clips, a stranger is a speaker of his own."""

import dataclasses

import numpy as np
import pytest
import torch

from search_spaces.architecture import EMBEDDING_DIM, Architecture, Geometry
from trainers.learning.batches import cut, window_starts
from trainers.networks.student import Student
from trainers.scoring.draw import whole
from trainers.scoring.metrics import rates, resampled
from trainers.scoring.outcome import parts
from trainers.scoring.scoring import hear, score
from trainers.speech.corpora import Corpus
from trainers.speech.trials import Trials, make_trials

CPU = torch.device("cpu")
WINDOW = 4880
KEYWORDS = ("fall", "flat", "rise")


@pytest.fixture(scope="module")
def student() -> Student:
    """Untrained, but it tells one window from another."""
    geometry = Geometry(
        head_dim=8,
        conv_dims=(16,) * 7,
        conv_bias=True,
        front_norm="layer",
        norm_order="post",
        position_kernel=16,
        position_groups=4,
        normalize_input=True,
    )
    architecture = Architecture(
        front_end="mel", front_width=16, frame_stride=1, width=16, heads=(1,), ffn_dims=(16,), kept_layers=(1,)
    )
    torch.manual_seed(0)
    return Student(architecture, geometry, KEYWORDS).eval()


def windows_of(corpus: Corpus, row: int, window: int) -> torch.Tensor:
    starts = window_starts(corpus.length(row), window)
    return torch.from_numpy(np.stack([cut(corpus, row, start, window) for start in starts]))


def test_a_clip_is_the_mean_of_its_windows(student: Student, tiny_corpus: Corpus) -> None:
    rows = tiny_corpus.rows()
    logits, embeddings = hear(student, tiny_corpus, rows, WINDOW, CPU)
    assert logits.shape == (101, 3)
    assert embeddings.shape == (101, EMBEDDING_DIM)
    assert logits.dtype == embeddings.dtype == np.float32
    counts = set()
    for row in (0, 9, 40, 69, 99, 100):  # 9, 69 and 99 are long; there are more windows than a batch holds
        windows = windows_of(tiny_corpus, row, WINDOW)
        counts.add(len(windows))
        with torch.no_grad():
            said, voices = student(windows)
        np.testing.assert_allclose(logits[row], said.mean(0), atol=1e-5)
        voice = torch.nn.functional.normalize(voices.mean(0), dim=0)
        np.testing.assert_allclose(embeddings[row], voice, atol=1e-5)
    assert counts == {1, 5}


def test_a_very_long_clip_is_heard_for_twenty_windows(student: Student, tiny_corpus: Corpus) -> None:
    windows = windows_of(tiny_corpus, 9, 720)  # 37 of them
    with torch.no_grad():
        said = student(windows[:20])[0].mean(0)
    assert len(windows) > 30
    np.testing.assert_allclose(hear(student, tiny_corpus, np.array([9]), 720, CPU)[0][0], said, atol=1e-5)


def test_hearing_is_in_evaluation_mode_and_in_any_order(student: Student, tiny_corpus: Corpus) -> None:
    rows = np.array([40, 3, 9, 100])
    student.train()
    logits, embeddings = hear(student, tiny_corpus, rows, WINDOW, CPU)
    assert not student.training
    back = hear(student, tiny_corpus, rows[::-1], WINDOW, CPU)
    np.testing.assert_allclose(back[0][::-1], logits, atol=1e-5)
    np.testing.assert_allclose(back[1][::-1], embeddings, atol=1e-5)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_is_scored_by_its_own_clips(split: str, student: Student, tiny_corpus: Corpus) -> None:
    trials = make_trials(tiny_corpus, split, 0)
    outcome = score(student, tiny_corpus, whole(tiny_corpus, split, trials), WINDOW, CPU)
    rows = tiny_corpus.rows(split, with_keyword=True)
    logits, _ = hear(student, tiny_corpus, rows, WINDOW, CPU)
    assert outcome.correct.tolist() == [KEYWORDS[i] == tiny_corpus.keywords[row] for row, i in zip(rows, logits.argmax(1))]
    assert len(outcome.correct) == {"val": 27, "test": 28}[split]  # the unlabelled clips have no keyword to miss
    names = tiny_corpus.speakers[rows]
    assert ((outcome.clip_speakers[:, None] == outcome.clip_speakers) == (names[:, None] == names)).all()
    for rate in rates(outcome):
        assert rate.low <= rate.value <= rate.high


def test_trials_are_cosines_of_their_clips_by_their_speakers(student: Student, tiny_corpus: Corpus) -> None:
    trials = make_trials(tiny_corpus, "test", 0)
    outcome = score(student, tiny_corpus, whole(tiny_corpus, "test", trials), WINDOW, CPU)
    _, voices = hear(student, tiny_corpus, tiny_corpus.rows(), WINDOW, CPU)
    np.testing.assert_allclose(outcome.trial_scores, (voices[trials.enrol] * voices[trials.test]).sum(1), atol=1e-5)
    assert np.array_equal(outcome.same, trials.same)
    assert np.array_equal(outcome.enrol_speakers == outcome.test_speakers, trials.same)
    same_name = tiny_corpus.speakers[trials.enrol][:, None] == tiny_corpus.speakers[trials.test]
    assert np.array_equal(outcome.enrol_speakers[:, None] == outcome.test_speakers, same_name)


def test_each_clip_of_nobody_known_is_a_speaker_of_its_own(student: Student, tiny_corpus: Corpus) -> None:
    speakers = tiny_corpus.speakers.copy()
    rows = tiny_corpus.rows("test", with_keyword=True)
    speakers[rows[:4]] = None
    speakers[rows[5]] = f"clip {rows[0]}"  # a name that looks like the number of a clip
    corpus = dataclasses.replace(tiny_corpus, speakers=speakers)
    trials = Trials(enrol=rows[[0, 6, 0]], test=rows[[1, 7, 6]], same=np.array([False, True, False]))
    outcome = score(student, corpus, whole(corpus, "test", trials), WINDOW, CPU)
    unknown = np.array([speakers[row] is None for row in rows])
    assert unknown.sum() == 5
    numbers = outcome.clip_speakers
    assert all((numbers == number).sum() == 1 for number in numbers[unknown])
    assert (numbers == numbers[5]).sum() == 1
    assert outcome.enrol_speakers[0] == outcome.enrol_speakers[2] == numbers[0]
    assert outcome.enrol_speakers[0] != outcome.test_speakers[0]
    assert outcome.enrol_speakers[1] == outcome.test_speakers[1]


def test_a_perfect_keyword_head_scores_all(student: Student, tiny_corpus: Corpus) -> None:
    """Clips of one keyword, and a bias that says it: labels go by the student's own list."""
    rows = tiny_corpus.rows("val", with_keyword=True)
    keywords = tiny_corpus.keywords.copy()
    keywords[rows] = "rise"
    corpus, trials = dataclasses.replace(tiny_corpus, keywords=keywords), make_trials(tiny_corpus, "val", 0)
    sure = Student(student.architecture, student.encoder.geometry, ("zero", "rise", "one"))
    for bias, expected in (([0.0, 99.0, 0.0], 1.0), ([99.0, 0.0, 0.0], 0.0)):
        sure.keyword_head.bias.data = torch.tensor(bias)
        assert score(sure, corpus, whole(corpus, "val", trials), WINDOW, CPU).correct.mean() == expected


def in_two(corpus: Corpus) -> Corpus:
    """Every clip in two corpora, as `load_corpus` gives them: speakers apart, keywords in common."""
    columns = {name: np.tile(getattr(corpus, name), 2) for name in ("files", "starts", "lengths", "ids", "splits", "keywords")}
    speakers = [speaker and f"{name}:{speaker}" for name in ("a", "b") for speaker in corpus.speakers]
    numbers = np.repeat([0, 1], len(corpus))
    return dataclasses.replace(
        corpus, **columns, speakers=np.array(speakers, object), corpora=numbers, names=("x/a.parquet", "x/b.parquet")
    )


def test_an_outcome_knows_of_which_corpus_clips_and_trials_are(student: Student, tiny_corpus: Corpus) -> None:
    both = in_two(tiny_corpus)
    trials = make_trials(both, "test", 0)
    outcome = score(student, both, whole(both, "test", trials), WINDOW, CPU)
    assert outcome.corpora.tolist() == ["a", "b"]
    rows = both.rows("test", with_keyword=True)
    assert np.array_equal(outcome.speaker_corpora[outcome.clip_speakers], both.corpus_numbers[rows])
    assert np.array_equal(outcome.speaker_corpora[outcome.enrol_speakers], both.corpus_numbers[trials.enrol])
    assert len(set(outcome.clip_speakers)) == 2 * 4  # three speakers and a stranger in each
    alone = score(student, tiny_corpus, whole(tiny_corpus, "test", make_trials(tiny_corpus, "test", 0)), WINDOW, CPU)
    assert not len(alone.corpora)
    assert parts(outcome)["a"].correct.tolist() == alone.correct.tolist() == parts(outcome)["b"].correct.tolist()
    assert (parts(outcome)["a"].clip_speakers == alone.clip_speakers).all()


def test_clips_of_every_corpus_are_scored_against_all_keywords(student: Student, tiny_corpus: Corpus) -> None:
    """Corpus b has words of its own; a head that says one of them for everything errs on all of a."""
    both = in_two(tiny_corpus)
    words = [word and f"{word}-b" if number else word for word, number in zip(both.keywords, both.corpus_numbers)]
    both = dataclasses.replace(both, keywords=np.array(words, object))
    assert len(both.keyword_labels) == 6
    sure = Student(student.architecture, student.encoder.geometry, both.keyword_labels)
    sure.keyword_head.bias.data = torch.eye(6)[both.keyword_labels.index("rise-b")] * 99
    found = resampled([score(sure, both, whole(both, "val", make_trials(both, "val", 0)), WINDOW, CPU)])
    own = {name: rate["accuracy"].value for name, rate in found.by_corpus().items()}
    assert own["a"] == 0 and 30 < own["b"] < 40 and found.rates()[0].value == own["b"] / 2


def test_a_corpus_with_nobody_in_the_split_is_none_of_an_outcome(student: Student, tiny_corpus: Corpus) -> None:
    both = in_two(tiny_corpus)
    splits = both.splits.copy()
    splits[both.corpus_numbers == 0] = "train"
    both = dataclasses.replace(both, splits=splits)
    outcome = score(student, both, whole(both, "val", make_trials(both, "val", 0)), WINDOW, CPU)
    assert not len(outcome.corpora)
    assert rates(outcome) == rates(
        score(student, tiny_corpus, whole(tiny_corpus, "val", make_trials(tiny_corpus, "val", 0)), WINDOW, CPU)
    )
