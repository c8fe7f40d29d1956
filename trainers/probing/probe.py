"""Linear probes of a teacher's frozen hidden states, layer by layer: what a linear head can read of the words and of the speaker.

Validation chooses each probe's regularisation and the layer; the test split is scored for the chosen layers alone.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.probing.linear import DECAYS, SHRINKAGES, Affine, Floats, Ints, fit_keywords, fit_speakers
from trainers.probing.pooled import Bench, Progress, Subject, log_mel_subject, pooled_states, random_subject, teacher_subject
from trainers.scoring.errors import accuracy, equal_error_rate, macro
from trainers.scoring.metrics import Resampled, contents, rate_of, resampled
from trainers.scoring.outcome import Outcome
from trainers.scoring.scoring import outcome_of
from trainers.speech.trials import Trials
from trainers.teacher.teacher import Teacher

Stage = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True, kw_only=True)
class LayerProbe:
    """The probe of one state with its best regularisation. errors: validation, in percent, one a seed; fits: one a seed."""

    strength: float
    errors: tuple[float, ...]
    fits: tuple[Affine, ...]

    @property
    def error(self) -> float:
        return float(np.mean(self.errors))


def _best_strength(strengths: Sequence[float], fits: Sequence[Sequence[Affine]], error: Callable[[Affine], float]) -> LayerProbe:
    """fits: a row a seed, a column a strength. One strength for all seeds."""
    errors = np.array([[error(fit) for fit in row] for row in fits])
    best = int(errors.mean(0).argmin())
    return LayerProbe(strength=strengths[best], errors=tuple(errors[:, best].tolist()), fits=tuple(row[best] for row in fits))


def probe_keywords(state: Floats, bench: Bench, device: torch.device) -> LayerProbe:
    """state (windows, features) of one layer. Trained on the train split's clips, scored on validation's: a mean over corpora."""
    train, val = (bench.corpus.rows(split, with_keyword=True) for split in ("train", "val"))
    x, y = _of_clips(state, bench, train), _keyword_numbers(bench, train)
    heard, wanted = _of_clips(state, bench, val), _keyword_numbers(bench, val)
    fits = [fit_keywords(x, y, seed, device) for seed in bench.seeds]

    def error(fit: Affine) -> float:
        correct = fit(heard).argmax(1) == wanted
        return 100 - macro(lambda own: accuracy(correct[own]), bench.corpus.corpus_numbers[val])

    return _best_strength(DECAYS, fits, error)


def probe_speakers(state: Floats, bench: Bench) -> LayerProbe:
    """state (windows, features) of one layer. Trained on the windows of the train split's known speakers, so that a long clip
    tells how one voice varies, scored on validation's trials, as a mean over corpora."""
    corpus, trials = bench.corpus, bench.trials["val"]
    train = np.isin(bench.clips, corpus.rows("train", with_speaker=True))
    _, firsts, labels = np.unique(corpus.speakers[bench.clips[train]].astype(str), return_index=True, return_inverse=True)
    corpora = corpus.corpus_numbers[bench.clips[train][firsts]]
    fits = [fit_speakers(state[train], labels, seed, corpora) for seed in bench.seeds]
    heard = _of_clips(state, bench, _trial_rows(trials))

    def error(fit: Affine) -> float:
        scores = _trial_scores(fit(heard), trials)
        return macro(lambda own: equal_error_rate(scores[own], trials.same[own]), corpus.corpus_numbers[trials.enrol])

    return _best_strength(SHRINKAGES, fits, error)


def _of_clips(state: Floats, bench: Bench, rows: Ints) -> Floats:
    """(rows, features): means over each clip's windows, which lie side by side."""
    firsts, ends = np.searchsorted(bench.clips, rows), np.searchsorted(bench.clips, rows, side="right")
    return np.stack([state[first:end].mean(0) for first, end in zip(firsts, ends)])


def _keyword_numbers(bench: Bench, rows: Ints) -> Ints:
    return np.searchsorted(np.array(bench.corpus.keyword_labels), bench.corpus.keywords[rows].astype(str))


def _trial_rows(trials: Trials) -> Ints:
    return np.unique(np.concatenate([trials.enrol, trials.test]))


def _trial_scores(voices: Floats, trials: Trials) -> Floats:
    """voices (clips of the trials, values) -> cosines (trials,)."""
    voices = voices / (np.linalg.norm(voices, axis=1, keepdims=True) + 1e-12)
    enrol, test = (np.searchsorted(_trial_rows(trials), side) for side in (trials.enrol, trials.test))
    scores: Floats = (voices[enrol] * voices[test]).sum(1)
    return scores


@dataclass(frozen=True, kw_only=True)
class Probed:
    """keywords, speakers: a probe for each state. outcomes: the test split, one a seed, of the layers chosen by validation."""

    subject: Subject
    keywords: tuple[LayerProbe, ...]
    speakers: tuple[LayerProbe, ...]
    outcomes: tuple[Outcome, ...]


def probe_subject(
    subject: Subject, states: NDArray[np.float32], bench: Bench, device: torch.device, progress: Progress | None = None
) -> Probed:
    """Probes every state, one in memory at a time; then, with the chosen two, the test split once."""
    keywords, speakers = [], []
    for layer, state in enumerate(states):
        state = np.array(state)
        keywords.append(probe_keywords(state, bench, device))
        speakers.append(probe_speakers(state, bench))
        if progress:
            progress(layer + 1, len(states))
    outcomes = _test(states, keywords, speakers, bench)
    return Probed(subject=subject, keywords=tuple(keywords), speakers=tuple(speakers), outcomes=outcomes)


def chosen(probes: Sequence[LayerProbe]) -> int:
    """The layer of the lowest mean validation error, the lowest of equals."""
    return int(np.argmin([probe.error for probe in probes]))


def _test(
    states: NDArray[np.float32], keywords: Sequence[LayerProbe], speakers: Sequence[LayerProbe], bench: Bench
) -> tuple[Outcome, ...]:
    """One outcome a seed, of the chosen layers."""
    trials, rows = bench.trials["test"], bench.corpus.rows("test", with_keyword=True)
    words, voices = chosen(keywords), chosen(speakers)
    heard, wanted = _of_clips(states[words], bench, rows), _keyword_numbers(bench, rows)
    in_trials = _of_clips(states[voices], bench, _trial_rows(trials))
    return tuple(
        outcome_of(bench.corpus, rows, np.asarray(word(heard).argmax(1) == wanted), trials, _trial_scores(voice(in_trials), trials))
        for word, voice in zip(keywords[words].fits, speakers[voices].fits)
    )


def probe_teachers(
    teachers: Sequence[Teacher], bench: Bench, cache: Path, device: torch.device, stage: Stage | None = None
) -> dict[str, Any]:
    """Probes the first teacher, a random copy of it, log-mel statistics and the other teachers, and compares the first with all.

    stage: gives a progress for each titled step. Returns what `srlnas teacher probe --json` prints.
    """
    first, *others = teachers
    subjects = [teacher_subject(first), random_subject(first), log_mel_subject(), *map(teacher_subject, others)]
    probed = []
    for subject in subjects:
        with (stage or _silent)(f"{subject.name}: hidden states") as tick:
            states = pooled_states(subject, bench, cache, device, tick)
        with (stage or _silent)(f"{subject.name}: probes") as tick:
            probed.append(probe_subject(subject, states, bench, device, tick))
    draws = [resampled(p.outcomes) for p in probed]
    return {
        "synthetic": bench.corpus.synthetic,
        "corpus": bench.corpus.digest,
        "window": bench.window,
        "seeds": list(bench.seeds),
        "subjects": [_subject_content(p, draw) for p, draw in zip(probed, draws)],
        "differences": [
            {"of": first.name, "minus": p.subject.name, **_rates_content(draws[0] - draw)} for p, draw in zip(probed[1:], draws[1:])
        ],
    }


def _silent(title: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda done, total: None)


def _subject_content(probed: Probed, drawn: Resampled) -> dict[str, Any]:
    return {
        "name": probed.subject.name,
        "key": hashlib.sha256(probed.subject.key.encode()).hexdigest()[:16],
        "layers": [
            {
                "layer": layer,
                "keyword_accuracy": _val_content([100 - error for error in words.errors], words.strength),
                "eer": _val_content(voices.errors, voices.strength),
            }
            for layer, (words, voices) in enumerate(zip(probed.keywords, probed.speakers))
        ],
        "keyword_layer": chosen(probed.keywords),
        "speaker_layer": chosen(probed.speakers),
        "test": _rates_content(drawn),
    }


def _val_content(values: Sequence[float], strength: float) -> dict[str, Any]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "spread": spread, "seeds": list(values), "regularisation": strength}


def _rates_content(found: Resampled) -> dict[str, Any]:
    """Keyword accuracy and EER, in percent or points: means over corpora, and by corpus where there are several."""
    content: dict[str, Any] = {
        name: {**asdict(rate_of(value, draw)), "seeds": value.tolist()}
        for name, value, draw in zip(("keyword_accuracy", "eer"), *found.macro())
    }
    by_corpus = found.by_corpus()
    return {**content, "by_corpus": contents(by_corpus)} if by_corpus else content
