"""An export hears streams, by its own `listen.py`: thresholds for its keywords are chosen on some, and scored on others."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.judging import answer_of
from deploy.measure import device_facts
from search_spaces.architecture import EMBEDDING_DIM, SAMPLE_RATE
from trainers.scoring.alarms import Heard, Thresholds, keyword_thresholds, least_hours, scores
from trainers.scoring.scoring import answers
from trainers.scoring.streams import SNR_DB, Stream, speech_streams
from trainers.scoring.thresholds import ENOUGH, voice_thresholds
from trainers.scoring.voices import CLIPS, Voices, enrolment, voices_heard, voices_shown
from trainers.speech.corpora import Corpus, Rows

FALSE_ALARMS = (10.0, 1.0, 0.1)  # an hour, of each keyword
REFRACTORY, UNCHOSEN = 1.0, 0.9  # seconds, and the probability where no threshold was chosen: `listen.py`'s
LEAST_HOURS, MORE = 4.0, 1.1  # of validation speech, where there is so much; times what the rarest rate needs
SCORED_SECONDS, CURVE_SECONDS = 3600.0, 300.0  # of test speech, at most
SPENT = re.compile(r"([\d.]+) % of one core")
CURVE_DB = (20.0, 10.0, 5.0, 0.0)

Progress = Callable[[float, float], None]


@dataclass(frozen=True, kw_only=True)
class Speech:
    """What an export is to hear. negatives: recordings in which no keyword is said. rates: of false alarms an hour. progress: hears
    the seconds that were listened to, and those in all."""

    corpus: Corpus
    noise: Corpus | None
    negatives: Sequence[Stream] = ()
    rates: Sequence[float] = FALSE_ALARMS
    progress: Progress | None = None


def listening(bundle: Path, speech: Speech) -> dict[str, Any]:
    """Entries of a manifest. `keyword_thresholds`: chosen on validation speech and negatives, for each rate. `stream`: what they
    show on the test split, by rate, and how many words are missed from one signal-to-noise ratio to the next.
    `stream_voice_thresholds`: chosen on the events of validation streams, and `stream_voices`: what they show on the test split.

    bundle: complete but for them. Raises ValueError where the script fails.
    """
    labels = json.loads((bundle / "labels.json").read_text(encoding="utf-8"))
    keywords = [label for label in labels if not label.startswith("_")]
    corpus, noise = speech.corpus, speech.noise
    chosen_from = _wanted(corpus, 3600 * max(LEAST_HOURS, MORE * ENOUGH / min(speech.rates)))
    validation = [*speech_streams(corpus, chosen_from, noise), *speech.negatives]
    voices = _voices(bundle, corpus, "val", len(labels))
    is_enough = bool(voices) or least_hours(validation, keywords) >= ENOUGH / max(speech.rates)
    heard = list(_hear(bundle, validation, speech.progress) if is_enough else map(unheard, validation))
    chosen = keyword_thresholds(heard, keywords, speech.rates, REFRACTORY)
    stated = {
        entry["false_alarms_an_hour"]: {keyword: own["threshold"] for keyword, own in entry["keywords"].items()}
        for entry in chosen
        if "keywords" in entry
    }
    told: Thresholds = stated[min(stated)] if stated else dict.fromkeys(keywords, UNCHOSEN)
    by_voice = voice_thresholds(voices_heard(heard, voices, told, REFRACTORY, corpus)) if voices else []
    supported = [entry for entry in by_voice if "threshold" in entry]
    test, shown = _test(bundle, speech, stated) if stated or supported else ([], [])
    strangers = _voices(bundle, corpus, "test", len(labels)) if supported else {}
    return {
        "keyword_thresholds": chosen,
        "stream": shown,
        "stream_noise_db": SNR_DB,
        "stream_noise_was_heard": noise is not None and not len(noise.rows("test")),
        "listening": _took(heard) if is_enough else None,
        "stream_voice_thresholds": by_voice,
        "stream_voices": voices_shown(voices_heard(test, strangers, told, REFRACTORY, corpus), supported) if strangers else [],
    }


def _wanted(corpus: Corpus, seconds: float) -> Rows:
    """Clips of validation, of so many seconds at most, those with keywords first."""
    rng = np.random.default_rng(0)
    words = corpus.rows("val", with_keyword=True)
    rows = np.concatenate([rng.permutation(words), rng.permutation(np.setdiff1d(corpus.rows("val"), words))])
    fitting = int((np.cumsum(corpus.lengths[rows] / SAMPLE_RATE) <= seconds).sum())
    return np.asarray(rows[: max(1, fitting)], np.intp)


def _took(heard: Sequence[Heard]) -> dict[str, Any]:
    """Percent of a core of this machine, CPU time of the script over seconds of the streams."""
    share = sum(one.cost for one in heard) / sum(one.stream.seconds for one in heard)
    return {"share_of_a_core": round(100 * share, 2), "machine": device_facts()["cpu"]}


def _voices(bundle: Path, corpus: Corpus, split: str, labels: int) -> Voices:
    """By the split's clips, as `enrol.py` makes them known; of a clip that is a little longer than a window, the middle."""
    enrolled = enrolment(corpus, corpus.rows(split, with_speaker=True))
    if not enrolled:
        return {}
    window = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["window"]
    embeddings = answers(answer_of(bundle / "model.onnx"), labels, corpus, np.concatenate(list(enrolled.values())), window)[1]
    means = embeddings.reshape(len(enrolled), CLIPS, -1).mean(1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return {speaker: (rows, mean) for (speaker, rows), mean in zip(enrolled.items(), means, strict=True)}


def _test(bundle: Path, speech: Speech, stated: Mapping[float, Thresholds]) -> tuple[list[Heard], list[dict[str, Any]]]:
    """The test split as it was heard, once, and what the thresholds for each rate show on it."""
    corpus, noise = speech.corpus, speech.noise
    words = corpus.rows("test", with_keyword=True)
    parts = [speech_streams(corpus, corpus.rows("test"), noise, seconds=SCORED_SECONDS)]
    parts += [speech_streams(corpus, words, noise, seconds=CURVE_SECONDS, snr_db=(snr,)) for snr in CURVE_DB]
    heard = _hear(bundle, [stream for part in parts for stream in part], speech.progress)
    test, *levels = ([next(heard) for _ in part] for part in parts)
    found = []
    for rate, thresholds in stated.items():
        missed = {f"{snr:g}": scores(level, thresholds, REFRACTORY)["missed"] for snr, level in zip(CURVE_DB, levels, strict=True)}
        found.append({"chosen_for": rate, **scores(test, thresholds, REFRACTORY), "missed_by_snr_db": missed})
    return test, found


def unheard(stream: Stream) -> Heard:
    """Where its hours alone are asked for."""
    return Heard(stream=stream, times=np.empty(0), keywords=np.empty(0, object), probabilities=np.empty(0))


def _hear(bundle: Path, streams: Sequence[Stream], progress: Progress | None) -> Iterator[Heard]:
    """In their order; as many at once as there are cores."""
    total, done = sum(stream.seconds for stream in streams), 0.0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for heard in pool.map(lambda stream: hear(bundle, stream), streams):
            done += heard.stream.seconds
            if progress:
                progress(done, total)
            yield heard


def hear(bundle: Path, stream: Stream) -> Heard:
    """Every window's likeliest keyword and voice. Raises ValueError where the script fails."""
    command = [
        sys.executable,
        "-B",
        str(bundle / "listen.py"),
        "-",
        "--threshold",
        "0",
        "--refractory",
        "0",
        "--embedding",
        "--cost",
    ]
    done = subprocess.run(command, input=stream.samples.astype("<i2").tobytes(), capture_output=True)
    if done.returncode:
        raise ValueError(f"{bundle}/listen.py failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    spent = SPENT.search(done.stderr.decode(errors="replace"))
    assert spent, "listen.py says what it took"
    events: list[Mapping[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return Heard(
        stream=stream,
        times=np.array([event["time"] for event in events], float),
        keywords=np.array([event["keyword"] for event in events], object),
        probabilities=np.array([event["probability"] for event in events], float),
        cost=float(spent[1]) / 100 * stream.seconds,
        embeddings=np.array([event["embedding"] for event in events], np.float32).reshape(len(events), EMBEDDING_DIM),
    )
