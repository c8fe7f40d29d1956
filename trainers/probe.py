"""Linear probes of a teacher's frozen hidden states, layer by layer: what a linear head can read of the words and of the speaker.

Validation chooses each probe's regularisation and the layer; the test split is scored for the chosen layers alone.
"""

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from search_spaces.architecture import EMBEDDING_DIM
from trainers.batches import cut, window_starts
from trainers.corpora import Corpus
from trainers.encoder import LogMel, SpeechEncoder, normalize
from trainers.metrics import INTERVAL, RESAMPLES, Outcome, Rate, accuracy, bootstrap, draw_speakers, equal_error_rate
from trainers.scoring import BATCH as WINDOWS_AT_ONCE
from trainers.scoring import MOST_WINDOWS
from trainers.teacher import Teacher
from trainers.trials import Trials

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Progress = Callable[[int, int], None]
Stage = Callable[[str], AbstractContextManager[Progress]]

DECAYS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # L2 penalties of the keyword probe
SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6)  # of the within-speaker scatter towards a multiple of the identity
STEPS, EPOCHS, BATCH, RATE = 600, 10, 256, 1e-2  # of the keyword probe's Adam
SMALLEST_DEVIATION = 1e-6
LAYOUT = "mean and deviation, float32"  # of the cached features; part of their key


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is probed. key: the same for the same function. states: (batch, samples) -> some of (batch, frames, width)."""

    name: str
    key: str
    states: Callable[[Tensor], Sequence[Tensor]]


def teacher_subject(teacher: Teacher) -> Subject:
    return _subject(teacher.name, teacher.digest, teacher.encoder)


def random_subject(teacher: Teacher, seed: int = 0) -> Subject:
    """An untrained network of the teacher's architecture: what the architecture gives by itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = SpeechEncoder(teacher.architecture, teacher.encoder.geometry).eval()
    return _subject("random copy", f"random {seed} {teacher.architecture.to_json()} {teacher.encoder.geometry.to_json()}", encoder)


def log_mel_subject() -> Subject:
    """80 log-mel energies of the normalised window (without normalisation keyword accuracy fell by two points)."""
    mel = LogMel()
    return Subject(name="log-mel", key="log-mel", states=lambda audio_bn: [mel.to(audio_bn.device)(normalize(audio_bn))])


def _subject(name: str, key: str, encoder: SpeechEncoder) -> Subject:
    return Subject(name=name, key=key, states=lambda audio_bn: encoder.to(audio_bn.device)(audio_bn))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every subject is probed on: a corpus, the trials of val and test, the window in samples, the seeds of the probes."""

    corpus: Corpus
    trials: Mapping[str, Trials]
    window: int
    seeds: tuple[int, ...]

    @functools.cached_property
    def rows(self) -> Ints:
        """The clips that are heard, rising: those with a keyword, of a known speaker or in a trial."""
        rows = [self.corpus.rows(with_keyword=True), self.corpus.rows(with_speaker=True)]
        return np.unique(np.concatenate([*rows, *(side for t in self.trials.values() for side in (t.enrol, t.test))]))

    @functools.cached_property
    def windows(self) -> list[tuple[int, int]]:
        """(clip, first sample) of every window, clips rising; at most 20 a clip, as in scoring."""
        return [
            (int(row), start)
            for row in self.rows
            for start in window_starts(self.corpus.length(int(row)), self.window)[:MOST_WINDOWS]
        ]

    @functools.cached_property
    def clips(self) -> Ints:
        """(windows,) the clip of each window."""
        return np.array([row for row, _ in self.windows])


def pooled_states(
    subject: Subject, bench: Bench, cache: Path, device: torch.device, progress: Progress | None = None
) -> NDArray[np.float32]:
    """Mean and deviation over time of every state in every window, (states, windows, 2 x width) float32, mapped from disk.

    Computed once below `cache` for each subject, corpus, window and choice of clips. In float32: bfloat16 is no faster on CPUs
    (331 s against 208 s for one teacher), and features must not depend on the machine that filled the cache.
    """
    rows = hashlib.sha256(bench.rows.astype("<i8").tobytes()).hexdigest()
    identity = json.dumps([LAYOUT, MOST_WINDOWS, subject.key, bench.corpus.digest, bench.window, rows])
    path = cache / "probe" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # renamed into place when complete
            _write_states(subject, bench, Path(folder) / path.name, device, progress)
            (Path(folder) / path.name).replace(path)
    states: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return states


@torch.inference_mode()
def _write_states(subject: Subject, bench: Bench, path: Path, device: torch.device, progress: Progress | None) -> None:
    file = None
    for first in range(0, len(bench.windows), WINDOWS_AT_ONCE):
        part = bench.windows[first : first + WINDOWS_AT_ONCE]
        audio = np.stack([cut(bench.corpus, row, start, bench.window) for row, start in part])
        states = subject.states(torch.from_numpy(audio).to(device))
        pooled = torch.stack([torch.cat([s.mean(1), s.std(1, correction=0)], -1) for s in states]).cpu().numpy()
        if file is None:
            shape = (len(pooled), len(bench.windows), pooled.shape[-1])
            file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        file[:, first : first + len(part)] = pooled
        if progress:
            progress(first + len(part), len(bench.windows))
    assert file is not None
    file.flush()


@dataclass(frozen=True, kw_only=True)
class Affine:
    """x -> x @ weight + bias, standardisation included."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, x: Floats) -> Floats:
        """(rows, features) -> (rows, outputs)."""
        y: Floats = x @ self.weight + self.bias
        return y


def fit_keywords(x: Floats, labels: Ints, seed: int, device: torch.device | None = None) -> list[Affine]:
    """Multinomial logistic regression on standardised features by minibatch Adam, one probe for each of DECAYS.

    x (clips, features), labels (clips,) numbers from 0. The seed draws the start and the order of clips. Within 0.3 points of
    L-BFGS run to convergence on the same penalties, and at full batch that has no seed to average over.
    """
    mean, deviation = _moments(x)
    x_nf = torch.from_numpy(((x - mean) / deviation).astype(np.float32)).to(device)
    y_n = torch.from_numpy(labels.astype(np.int64)).to(device)
    weight, bias = _train_heads(x_nf, y_n, int(labels.max()) + 1, torch.Generator().manual_seed(seed))
    return [_unstandardised(w, b, mean, deviation) for w, b in zip(weight, bias)]


@torch.no_grad()
def _train_heads(x_nf: Tensor, y_n: Tensor, classes: int, generator: torch.Generator) -> tuple[Floats, Floats]:
    """All penalties at once, as one wide head: weights (penalties, features, classes) and biases (penalties, classes).

    The gradient of a softmax regression is one product; autograd took twice as long.
    """
    (count, features), penalties = x_nf.shape, torch.tensor(DECAYS, device=x_nf.device)[:, None]
    start = 0.1 * features**-0.5 * torch.randn(features, len(DECAYS), classes, generator=generator)
    weight, bias = start.to(x_nf.device), torch.zeros(len(DECAYS), classes, device=x_nf.device)
    right_nc, steps, batch = F.one_hot(y_n, classes).float(), max(STEPS, EPOCHS * count // BATCH), min(BATCH, count)
    optimizer = torch.optim.Adam([weight, bias], lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(count, generator=generator)
        picked, order = order[:batch].to(x_nf.device), order[batch:]
        x = x_nf[picked]
        said = ((x @ weight.flatten(1)).unflatten(1, (-1, classes)) + bias).softmax(-1)
        wrong = (said - right_nc[picked][:, None]) / batch
        weight.grad, bias.grad = (x.T @ wrong.flatten(1)).view_as(weight).addcmul_(weight, penalties), wrong.sum(0)
        optimizer.step()
        schedule.step()
    return weight.transpose(0, 1).cpu().numpy(), bias.cpu().numpy()


def fit_speakers(x: Floats, labels: Ints, seed: int) -> list[Affine]:
    """Linear discriminant analysis to at most EMBEDDING_DIM values that cosines compare, one for each of SHRINKAGES.

    x (windows, features), labels (windows,) numbers from 0. The seed draws the windows' weights (Bayesian bootstrap, Rubin 1981).
    A direction counts by the share of its variance that lies between speakers. Of what was tried this had the lowest validation
    EER with the teacher, the random copy and log-mels alike (9.8, 36.3, 15.1 %): plain discriminants (11.0, 39.3, 18.2 %)
    count directions full that tell few speakers apart; a map learnt by angular softmax reached 11.5, 36.6, 18.2 %.
    """
    mean, deviation = _moments(x)
    x = (x - mean) / deviation
    weights = np.random.default_rng(seed).exponential(size=len(x)).astype(np.float32)
    weights /= weights.sum()
    sums = np.zeros((int(labels.max()) + 1, x.shape[1]))
    np.add.at(sums, labels, x * weights[:, None])
    shares = np.bincount(labels, weights, len(sums))
    centres = sums / np.maximum(shares, 1e-12)[:, None]
    middle = shares @ centres
    scattered = (x - centres[labels].astype(np.float32)) * np.sqrt(weights)[:, None]
    variances, axes = np.linalg.eigh((scattered.T @ scattered).astype(np.float64))
    spread = (centres - middle) * np.sqrt(shares)[:, None]
    fitted = []
    for shrinkage in SHRINKAGES:
        shrunk = (1 - shrinkage) * variances.clip(0) + shrinkage * variances.mean() + SMALLEST_DEVIATION
        whitener = axes / np.sqrt(shrunk)
        _, ratios, directions = np.linalg.svd(spread @ whitener, full_matrices=False)
        ratios, directions = ratios[:EMBEDDING_DIM] ** 2, directions[:EMBEDDING_DIM]  # variance between by variance within
        weight = whitener @ (directions.T * np.sqrt(ratios / (1 + ratios)))
        fitted.append(_unstandardised(weight, -middle @ weight, mean, deviation))
    return fitted


def _moments(x: Floats) -> tuple[Floats, Floats]:
    return x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64) + SMALLEST_DEVIATION


def _unstandardised(weight: Floats, bias: Floats, mean: Floats, deviation: Floats) -> Affine:
    scaled = weight / deviation[:, None]
    return Affine(weight=scaled.astype(np.float32), bias=(bias - mean @ scaled).astype(np.float32))


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
    """state (windows, features) of one layer. Trained on the train split's clips, scored on validation's."""
    train, val = (bench.corpus.rows(split, with_keyword=True) for split in ("train", "val"))
    x, y = _of_clips(state, bench, train), _keyword_numbers(bench, train)
    heard, wanted = _of_clips(state, bench, val), _keyword_numbers(bench, val)
    fits = [fit_keywords(x, y, seed, device) for seed in bench.seeds]
    return _best_strength(DECAYS, fits, lambda fit: 100 - accuracy(fit(heard).argmax(1) == wanted))


def probe_speakers(state: Floats, bench: Bench) -> LayerProbe:
    """state (windows, features) of one layer. Trained on the windows of the train split's known speakers, so that a long clip
    tells how one voice varies, scored on validation's trials."""
    corpus, trials = bench.corpus, bench.trials["val"]
    train = np.isin(bench.clips, corpus.rows("train", with_speaker=True))
    labels = np.unique(corpus.speakers[bench.clips[train]].astype(str), return_inverse=True)[1]
    fits = [fit_speakers(state[train], labels, seed) for seed in bench.seeds]
    heard = _of_clips(state, bench, _trial_rows(trials))
    return _best_strength(SHRINKAGES, fits, lambda fit: equal_error_rate(_trial_scores(fit(heard), trials), trials.same))


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
    clip_speakers, enrol_speakers, test_speakers = _speaker_numbers(bench.corpus, rows, trials.enrol, trials.test)
    return tuple(
        Outcome(
            correct=np.asarray(word(heard).argmax(1) == wanted),
            clip_speakers=clip_speakers,
            trial_scores=_trial_scores(voice(in_trials), trials),
            same=trials.same,
            enrol_speakers=enrol_speakers,
            test_speakers=test_speakers,
        )
        for word, voice in zip(keywords[words].fits, speakers[voices].fits)
    )


def _speaker_numbers(corpus: Corpus, *sides: Ints) -> list[Ints]:
    """Numbers from 0 for the clips of each side; a clip of an unknown speaker counts as a speaker of its own."""
    rows = np.concatenate(sides)
    names = [f"clip {row}" if corpus.speakers[row] is None else f"known {corpus.speakers[row]}" for row in rows]
    return np.split(np.unique(names, return_inverse=True)[1], np.cumsum([len(side) for side in sides])[:-1])


def resampled(outcomes: Sequence[Outcome]) -> tuple[Floats, Floats]:
    """Values (2, seeds) and resamples (2, resamples) of keyword accuracy and EER. Every resample draws speakers and seeds, the
    same ones for whatever has the same speakers and as many seeds, so that a difference of two is paired."""
    drawn = draw_speakers(outcomes[0])
    each = np.array([bootstrap(outcome, drawn) for outcome in outcomes])
    seeds = np.random.default_rng(1).multinomial(len(each), np.full(len(each), 1 / len(each)), size=RESAMPLES) / len(each)
    values = [[accuracy(o.correct) for o in outcomes], [equal_error_rate(o.trial_scores, o.same) for o in outcomes]]
    return np.array(values), np.einsum("stn,ns->tn", each, seeds)


def _rate(values: Floats, drawn: Floats) -> Rate:
    low, high = np.nanpercentile(drawn, INTERVAL)
    return Rate(value=float(values.mean()), low=float(low), high=float(high))


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
        "subjects": [_subject_content(p, *draw) for p, draw in zip(probed, draws)],
        "differences": [
            {"of": first.name, "minus": p.subject.name, **_rates_content(draws[0][0] - draw[0], draws[0][1] - draw[1])}
            for p, draw in zip(probed[1:], draws[1:])
        ],
    }


def _silent(title: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda done, total: None)


def _subject_content(probed: Probed, values: Floats, drawn: Floats) -> dict[str, Any]:
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
        "test": _rates_content(values, drawn),
    }


def _val_content(values: Sequence[float], strength: float) -> dict[str, Any]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "spread": spread, "seeds": list(values), "regularisation": strength}


def _rates_content(values: Floats, drawn: Floats) -> dict[str, Any]:
    """values (2, seeds), drawn (2, resamples): of keyword accuracy and EER, in percent or points."""
    return {
        name: {**vars(_rate(value, draw)), "seeds": value.tolist()}
        for name, value, draw in zip(("keyword_accuracy", "eer"), values, drawn)
    }
