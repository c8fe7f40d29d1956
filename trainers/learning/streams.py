"""Training batches as functions of the step: a step always has the same batch. Training then goes on exactly where it stopped, with
no state of a random generator to keep, and all students of a node can hear batches that one of them made.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.learning.batches import Augmentation, Ints, Rng, training_windows, windows_filled
from trainers.learning.recipe import Recipe
from trainers.learning.targets import Targets
from trainers.speech.corpora import Corpus

DISTILLATION, KEYWORDS, SPEAKERS = "distillation", "keywords", "speakers"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """audio: (batch, window) float16, as the student hears it. labels: (batch,) classes, or numbers of the targets' windows.
    answers: (batch, keywords + EMBEDDING_DIM) float16, a tutor's logits and embeddings, where there is one."""

    audio: NDArray[np.float16]
    labels: NDArray[np.int64]
    answers: NDArray[np.float16] | None = None


Stream = Callable[[int], Batch]
Share = Callable[[str, Stream], Stream]  # of a stream and its name


def alone(name: str, stream: Stream) -> Stream:
    """Shares nothing."""
    return stream


def distillation_stream(targets: Targets, batch: int, augment: Augmentation, seed: int) -> Stream:
    picked = epochs(len(targets.rows), batch, seed)

    def of(step: int) -> Batch:
        labels = picked(step)
        return Batch(audio=augment(targets.audio(labels), step_rng(seed, DISTILLATION, step)).astype(np.float16), labels=labels)

    return of


def keyword_stream(
    corpus: Corpus, keywords: tuple[str, ...], recipe: Recipe, window: int, augment: Augmentation, seed: int
) -> Stream:
    """Labels are places in `keywords`."""
    rows, places = corpus.rows("train", with_keyword=True), {keyword: i for i, keyword in enumerate(keywords)}
    picked = epochs(len(rows), recipe.batch, seed)

    def of(step: int) -> Batch:
        rng, clips = step_rng(seed, KEYWORDS, step), rows[picked(step)]
        speeds = rng.choice(recipe.speeds, size=len(clips))
        return _heard(corpus, clips, speeds, np.array([places[corpus.keywords[clip]] for clip in clips]), window, rng, augment)

    return of


def speaker_stream(corpus: Corpus, recipe: Recipe, window: int, augment: Augmentation, seed: int) -> Stream:
    """Labels are places in `corpora_of_classes`. Each window of speech is heard once before any is heard again."""
    rows = corpus.rows("train", with_speaker=True)
    names, numbers = np.unique(corpus.speakers[rows].astype(str), return_inverse=True)
    filled = windows_filled(corpus, rows, window)
    clips, lasts = np.repeat(np.arange(len(rows)), filled), np.cumsum(filled)
    picked = epochs(len(clips), recipe.batch, seed)

    def of(step: int) -> Batch:
        rng, windows = step_rng(seed, SPEAKERS, step), picked(step)
        at, speeds = clips[windows], rng.integers(len(recipe.speaker_speeds), size=recipe.batch)
        parts = [(int(place - lasts[clip] + filled[clip]), int(filled[clip])) for place, clip in zip(windows, at)]
        labels = numbers[at] + speeds * len(names)
        return _heard(corpus, rows[at], np.array(recipe.speaker_speeds)[speeds], labels, window, rng, augment, parts)

    return of


def corpora_of_classes(corpus: Corpus, recipe: Recipe) -> NDArray[np.int64]:
    """(classes,): the number of each one's corpus. Classes are speakers times speeds: at another speed another one speaks."""
    rows = corpus.rows("train", with_speaker=True)
    _, firsts = np.unique(corpus.speakers[rows].astype(str), return_index=True)
    return np.tile(corpus.corpus_numbers[rows[firsts]].astype(np.int64), len(recipe.speaker_speeds))


def _heard(
    corpus: Corpus,
    clips: Ints,
    speeds: NDArray[np.float64],
    labels: Ints,
    window: int,
    rng: Rng,
    augment: Augmentation,
    parts: list[tuple[int, int]] | None = None,
) -> Batch:
    audio = training_windows(corpus, clips.tolist(), window, rng, augment, speeds=speeds.tolist(), parts=parts)
    return Batch(audio=audio.astype(np.float16), labels=labels.astype(np.int64))


def step_rng(seed: int, name: str, step: int) -> Rng:
    return np.random.default_rng([seed, *name.encode(), step])


def epochs(count: int, batch: int, seed: int) -> Callable[[int], NDArray[np.int64]]:
    """Numbers below `count` in random order, each once an epoch: those of a step, (batch,)."""

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([seed, epoch]).permutation(count)

    def of(step: int) -> NDArray[np.int64]:
        return np.array([order(place // count)[place % count] for place in range(step * batch, (step + 1) * batch)])

    return of
