"""What a trained student says of every clip of a split, and which trials it gets right."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from search_spaces.architecture import EMBEDDING_DIM
from trainers.learning.batches import cut, window_starts
from trainers.networks.student import Student
from trainers.scoring.draw import MOST_WINDOWS, Scored
from trainers.scoring.outcome import Outcome
from trainers.speech.corpora import Corpus, Rows
from trainers.speech.trials import Trials

BATCH = 64

Heard = tuple[NDArray[np.float32], NDArray[np.float32]]
Answer = Callable[[NDArray[np.float32]], Heard]  # (windows, samples) -> logits (windows, keywords), embeddings


def hear(student: Student, corpus: Corpus, rows: NDArray[np.integer], window: int, device: torch.device) -> Heard:
    """Logits (rows, keywords) and unit embeddings (rows, EMBEDDING_DIM): means over a clip's windows, in float32 as exported."""
    return answers(_answer(student, device), len(student.keywords), corpus, rows, window)


def _answer(student: Student, device: torch.device) -> Answer:
    student.to(device).eval()

    @torch.inference_mode()
    def answer(audio: NDArray[np.float32]) -> Heard:
        logits, embeddings = student(torch.from_numpy(audio).to(device))
        return logits.cpu().numpy(), embeddings.cpu().numpy()

    return answer


def answers(answer: Answer, keywords: int, corpus: Corpus, rows: NDArray[np.integer], window: int) -> Heard:
    """As `hear`, of whatever answers."""
    where = [(i, start) for i, row in enumerate(rows) for start in window_starts(corpus.length(int(row)), window)[:MOST_WINDOWS]]
    logits = np.zeros((len(rows), keywords), np.float32)
    embeddings = np.zeros((len(rows), EMBEDDING_DIM), np.float32)
    for first in range(0, len(where), BATCH):
        part = where[first : first + BATCH]
        heard = answer(np.stack([cut(corpus, int(rows[i]), start, window) for i, start in part]))
        clips = [i for i, _ in part]
        np.add.at(logits, clips, heard[0])
        np.add.at(embeddings, clips, heard[1])
    counts = np.bincount([i for i, _ in where]).astype(np.float32)[:, None]
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not (np.isfinite(logits).all() and np.isfinite(norms).all() and norms.all()):
        raise FloatingPointError("the network's answers are no numbers, or have no length")
    return logits / counts, embeddings / norms


def score(student: Student, corpus: Corpus, scored: Scored, window: int, device: torch.device) -> Outcome:
    """Hears each clip that is scored or stands in a trial once, and sums up. A clip of any corpus may be taken for any keyword of
    the student."""
    return score_answers(_answer(student, device), student.keywords, corpus, scored, window)


def score_answers(answer: Answer, keywords: Sequence[str], corpus: Corpus, scored: Scored, window: int) -> Outcome:
    """As `score`, of whatever answers."""
    trials, rows = scored.trials, scored.rows
    logits, embeddings = answers(answer, len(keywords), corpus, rows, window)
    said = np.array(keywords, object)[logits[np.searchsorted(rows, scored.clips)].argmax(1)]
    enrol, test = np.searchsorted(rows, trials.enrol), np.searchsorted(rows, trials.test)
    correct = np.asarray(said == corpus.keywords[scored.clips], bool)
    return outcome_of(corpus, scored.clips, correct, trials, (embeddings[enrol] * embeddings[test]).sum(1))


def outcome_of(
    corpus: Corpus, keyword_rows: Rows, correct: NDArray[np.bool_], trials: Trials, trial_scores: NDArray[np.floating]
) -> Outcome:
    """With whose clips and trials they are: speakers are numbered from 0; a clip of an unknown speaker counts as one of its own."""
    rows, places = np.unique(np.concatenate([keyword_rows, trials.enrol, trials.test]), return_inverse=True)
    names = [f"known {corpus.speakers[row]}" if corpus.speakers[row] is not None else f"clip {row}" for row in rows]
    _, first, numbers = np.unique(names, return_index=True, return_inverse=True)
    clips, enrol, test = np.split(numbers[places], np.cumsum([len(keyword_rows), len(trials)]))
    present, speaker_corpora = np.unique(corpus.corpus_numbers[rows[first]], return_inverse=True)
    outcome = Outcome(
        correct=correct,
        clip_speakers=clips,
        trial_scores=trial_scores,
        same=trials.same,
        enrol_speakers=enrol,
        test_speakers=test,
    )
    if len(present) == 1:
        return outcome
    short = np.array([corpus.short_names[number] for number in present])
    return dataclasses.replace(outcome, speaker_corpora=speaker_corpora, corpora=short)
