"""Voices in a stream: whom a device takes the speaker of a keyword for, where it knows voices from some clips of each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.scoring.alarms import Heard, Thresholds
from trainers.scoring.errors import Bools, Floats
from trainers.scoring.metrics import Rate, draw_speakers, rate_of, whole
from trainers.scoring.outcome import Outcome, parts
from trainers.scoring.scoring import outcome_of
from trainers.scoring.streams import Said
from trainers.speech.corpora import Corpus, Rows
from trainers.speech.trials import as_trials

CLIPS = 3  # of a voice that is made known, as `enrol.py` asks for; as many more are heard, at least
WINDOW = 1.0  # seconds before an event in which it was said

Embeddings = NDArray[np.float32]
Voices = Mapping[str, tuple[Rows, Embeddings]]  # by speaker: the clips that made it known, their mean embedding of unit length


def enrolment(corpus: Corpus, rows: Rows, seed: int = 0) -> dict[str, Rows]:
    """Clips that make a voice known, by speaker: three of each who has as many more, and keywords. None of a corpus in which one
    alone has."""
    rng, found = np.random.default_rng(seed), dict[str, Rows]()
    spoken = np.array([row for row in rows if corpus.speakers[row] is not None], np.intp)
    for speaker in dict.fromkeys(corpus.speakers[spoken]):
        own = spoken[corpus.speakers[spoken] == speaker]
        if len(own) >= 2 * CLIPS and sum(word is not None for word in corpus.keywords[own]) > CLIPS:
            found[speaker] = rng.choice(own, CLIPS, replace=False)
    numbers = [int(corpus.corpus_numbers[own[0]]) for own in found.values()]
    return {speaker: own for (speaker, own), number in zip(found.items(), numbers) if numbers.count(number) > 1}


def voices_heard(heard: Iterable[Heard], voices: Voices, thresholds: Thresholds, refractory: float, corpus: Corpus) -> Outcome:
    """A trial for every event in the speech of a known speaker and every voice of that corpus. The clips that made voices known are
    passed over; no keyword is scored."""
    enrolled = {int(row) for rows, _ in voices.values() for row in rows}
    told = [(row, embedding) for one in heard for row, embedding in _told(one, thresholds, refractory) if row not in enrolled]
    scored = [
        (rows[0], row, float(voice @ embedding))
        for row, embedding in told
        for rows, voice in voices.values()
        if corpus.speakers[row] is not None and corpus.corpus_numbers[rows[0]] == corpus.corpus_numbers[row]
    ]
    enrol, test = (np.array([trial[i] for trial in scored], np.intp) for i in (0, 1))
    trials = as_trials(enrol, test, corpus.speakers[enrol] == corpus.speakers[test])
    similarities = np.array([similarity for *_, similarity in scored], np.float32)
    return outcome_of(corpus, np.zeros(0, np.intp), np.zeros(0, bool), trials, similarities)


def _told(one: Heard, thresholds: Thresholds, refractory: float) -> Iterator[tuple[int, Embeddings]]:
    """The clip that each event was heard in, and its embedding."""
    for keyword, threshold in thresholds.items():
        if threshold is None:
            continue
        for place in one.places(keyword, threshold, refractory):
            said = max(one.stream.said, key=lambda said: _shared(said, one.times[place]))
            if said.row is not None and _shared(said, one.times[place]) > 0:
                yield said.row, one.embeddings[place]


def _shared(said: Said, time: float) -> float:
    """Seconds of it that an event at a time may have heard."""
    return float(min(said.end, time) - max(said.begin, time - WINDOW))


def voices_shown(outcome: Outcome, stated: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each threshold shows: percent of events in a voice's own words that are `missed`, and of others' that are taken for it,
    `accepted`. Means over corpora, with intervals over speakers. events: in own words of all voices."""
    return [
        {"chosen_for": entry["false_acceptance"], **_shown(outcome, entry["threshold"])} for entry in stated if "threshold" in entry
    ]


def _shown(outcome: Outcome, threshold: float) -> dict[str, Any]:
    missed, accepted = list[tuple[float, Floats]](), list[tuple[float, Floats]]()
    for place, part in enumerate(parts(outcome).values()):
        if part.same.any() and not part.same.all():
            drawn = draw_speakers(part, [0, place]).astype(float)
            above = part.trial_scores >= threshold
            missed.append(_share(part, part.same, ~above, drawn))
            accepted.append(_share(part, ~part.same, above, drawn))
    return {
        "events": int(outcome.same.sum()),
        "voices": len(np.unique(outcome.enrol_speakers)),
        "missed": _mean(missed),
        "accepted": _mean(accepted),
    }


def _share(part: Outcome, kind: Bools, counted: Bools, drawn: Floats) -> tuple[float, Floats]:
    """Percent of a kind of trial that is counted, and of every resample. drawn (resamples, speakers)."""
    total, hit = _drawn_trials(part, kind, drawn), _drawn_trials(part, kind & counted, drawn)
    shares = np.divide(100 * hit, total, out=np.full(len(drawn), np.nan), where=total > 0)
    return 100 * float(counted[kind].mean()), whole(shares)


def _drawn_trials(part: Outcome, which: Bools, drawn: Floats) -> Floats:
    """(resamples,): one of two speakers counts as often as both were drawn, one of one speaker as often as that one."""
    size = drawn.shape[1]
    cells = np.bincount(part.enrol_speakers[which] * size + part.test_speakers[which], minlength=size * size).reshape(size, size)
    of_one = cells.diagonal()
    return np.asarray(drawn @ of_one + ((drawn @ (cells - np.diag(of_one))) * drawn).sum(1))


def _mean(found: Sequence[tuple[float, Floats]]) -> dict[str, float] | None:
    """Over corpora."""
    if not found:
        return None
    rate: Rate = rate_of(np.array([np.mean([value for value, _ in found])]), np.mean([drawn for _, drawn in found], axis=0))
    return {name: round(value, 2) for name, value in asdict(rate).items()}
