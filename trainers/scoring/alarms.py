"""Keywords in a stream: which threshold gives how many false alarms an hour, and what a stream shows of thresholds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from search_spaces.architecture import EMBEDDING_DIM
from trainers.scoring.streams import Said, Stream
from trainers.scoring.thresholds import ENOUGH

SLACK = 1.0  # seconds after a clip's end in which its keyword may still be told: a window hears a second
TRIED = 256  # parts of the probabilities of a keyword, in one of which its threshold is looked for

Thresholds = Mapping[str, float | None]  # None: the keyword is never told


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a model heard of a stream: at each of `times`, in seconds, the likeliest keyword and its probability, (hops,) each, and
    the voice's embedding, (hops, EMBEDDING_DIM) of unit length. cost: CPU-seconds that it took."""

    stream: Stream
    times: NDArray[np.float64]
    keywords: NDArray[np.object_]
    probabilities: NDArray[np.float64]
    cost: float = 0.0
    embeddings: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, EMBEDDING_DIM), np.float32))

    def places(self, keyword: str, threshold: float, refractory: float) -> NDArray[np.intp]:
        """Of the events among the hops, as `listen.py` tells them: a keyword that goes on is one."""
        above = np.flatnonzero((self.keywords == keyword) & (self.probabilities >= threshold))
        return np.compress(np.diff(self.times[above], prepend=-np.inf) >= refractory - 1e-6, above)

    def events(self, keyword: str, threshold: float, refractory: float) -> NDArray[np.float64]:
        """Seconds of the events."""
        return np.asarray(self.times[self.places(keyword, threshold, refractory)])


def keyword_thresholds(
    heard: Sequence[Heard], keywords: Iterable[str], rates: Sequence[float], refractory: float
) -> list[dict[str, Any]]:
    """For each rate of false alarms an hour, of one keyword: the lowest threshold of each keyword that keeps to it from there on,
    and the percent of its clips that are then missed; or `unsupported`, with a reason. Negatives of a keyword are all other speech.
    """
    keywords = list(keywords)
    hours = least_hours([one.stream for one in heard], keywords)
    found = []
    for rate in sorted(rates, reverse=True):
        entry: dict[str, Any] = {"false_alarms_an_hour": rate}
        if hours < (needed := ENOUGH / rate):
            entry["unsupported"] = f"{hours:.3g} hours of negatives; {needed:.3g} are needed"
        else:
            entry["hours_of_negatives"] = round(hours, 2)
            entry["keywords"] = {keyword: _threshold(heard, keyword, rate, refractory) for keyword in keywords}
        found.append(entry)
    return found


def least_hours(streams: Sequence[Stream], keywords: Iterable[str]) -> float:
    """Of negatives, of the keyword that has the fewest."""
    return min((negative_hours(streams, keyword) for keyword in keywords), default=0.0)


def negative_hours(streams: Iterable[Stream], keyword: str) -> float:
    """Of speech, and of recordings, in which the keyword is not said."""
    return sum(said.end - said.begin for stream in streams for said in stream.said if said.keyword != keyword) / 3600


def _threshold(heard: Sequence[Heard], keyword: str, rate: float, refractory: float) -> dict[str, float | None]:
    allowed = rate * negative_hours([one.stream for one in heard], keyword)
    seen = np.unique(np.concatenate([one.probabilities[one.keywords == keyword] for one in heard]))

    def is_kept(place: int) -> bool:
        return sum(len(_matched(one, keyword, seen[place], refractory)[1]) for one in heard) <= allowed

    step, good = max(1, len(seen) // TRIED), len(seen)  # from the place `good` on the rate is kept
    while good > 0 and is_kept(max(0, good - step)):
        good = max(0, good - step)
    while good > 0 and is_kept(good - 1):
        good -= 1
    if good == 0:
        return _entry(heard, keyword, 0.0, refractory)
    return _entry(heard, keyword, None if good == len(seen) else float(seen[good - 1 : good + 1].mean()), refractory)


def _entry(heard: Sequence[Heard], keyword: str, threshold: float | None, refractory: float) -> dict[str, float | None]:
    shown = scores(heard, {keyword: threshold}, refractory)["missed"]
    return {"threshold": threshold if threshold is None else round(threshold, 5), "missed": shown and shown["value"]}


def scores(heard: Sequence[Heard], thresholds: Thresholds, refractory: float) -> dict[str, Any]:
    """Of all keywords together: percent of their clips that are `missed`, with a Wilson interval; `false_alarms_an_hour` of speech,
    with a Poisson interval (Garwood 1936); milliseconds of `delay_ms` from the end of a word's speech to its event. What nothing
    was said of is None."""
    delays, alarms, words = list[float](), 0, 0
    for keyword, threshold in thresholds.items():
        for one in heard:
            words += sum(said.keyword == keyword for said in one.stream.said)
            if threshold is not None:
                late, false = _matched(one, keyword, threshold, refractory)
                delays, alarms = delays + late, alarms + len(false)
    hours = sum(said.end - said.begin for one in heard for said in one.stream.said) / 3600
    return {
        "hours": round(hours, 3),
        "words": words,
        "missed": _share(words - len(delays), words),
        "false_alarms_an_hour": _rate(alarms, hours),
        "delay_ms": {name: round(1000 * float(np.quantile(delays, q))) for name, q in (("median", 0.5), ("ninth_decile", 0.9))}
        if delays
        else None,
    }


def _matched(one: Heard, keyword: str, threshold: float, refractory: float) -> tuple[list[float], list[float]]:
    """Seconds from the end of a word's speech to its event, of each word that was heard; and those of false alarms. A word that is
    told twice is one and a false alarm."""
    waiting: list[Said] = [said for said in one.stream.said if said.keyword == keyword]
    delays, false = list[float](), list[float]()
    for time in one.events(keyword, threshold, refractory).tolist():
        meant = next((said for said in waiting if said.begin <= time <= said.end + SLACK), None)
        if meant is None:
            false.append(time)
        else:
            waiting.remove(meant)
            delays.append(time - meant.spoken)
    return delays, false


def _share(count: int, total: int) -> dict[str, float] | None:
    """In percent."""
    if not total:
        return None
    low, high = scipy.stats.binomtest(count, total).proportion_ci(method="wilson")
    return {"value": round(100 * count / total, 2), "low": round(100 * low, 2), "high": round(100 * high, 2)}


def _rate(count: int, hours: float) -> dict[str, float] | None:
    if not hours:
        return None
    low = scipy.stats.chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    high = scipy.stats.chi2.ppf(0.975, 2 * count + 2) / 2
    return {"value": round(count / hours, 2), "low": round(low / hours, 2), "high": round(high / hours, 2)}
