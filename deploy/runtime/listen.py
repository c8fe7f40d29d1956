"""Listens to a stream and writes one JSON line for each keyword that it hears: when, which, how sure, and whose voice it is.

    python listen.py                     the microphone, where `sounddevice` is installed
    python listen.py recording.wav       a recording
    arecord -q -t raw -f S16_LE -r 16000 -c 1 | python listen.py -     raw PCM or WAV on standard input

    {"time": 12.4, "keyword": "yes", "probability": 0.9812, "speaker": "ada", "similarity": 0.74}

time: seconds of the stream, at the end of what was heard. speaker: a voice of `voices.json`, which `enrol.py` makes, or unknown.
Lies beside the other files of its folder. Needs numpy and onnxruntime alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.dont_write_bytecode = True  # the folder keeps the files that were exported, and no other code
from classify import Samples, classify, load_model  # noqa: E402
from enrol import LISTENING, VOICES_FILE, Voices, read_voices, voice_threshold  # noqa: E402
from sources import FULL_SCALE, hops_of_file, hops_of_microphone, hops_of_stream  # noqa: E402

UNKNOWN = "unknown"
FRAME_SECONDS = 0.02
FLOOR_SECONDS = 30.0  # of the stream, whose quiet tenth is the room's own noise
LOWEST_LEVEL = -70.0  # dB of full scale: below that there is no sound


@dataclass(frozen=True)
class Settings:
    """hop: seconds between windows. margin: decibels above the room's own noise from which a window is heard at all. smooth:
    windows whose mean decides. refractory: seconds after an event in which its keyword is no new one. threshold: the probability
    from which a keyword is told, `thresholds`: those of the keywords that have one of their own. voice: the similarity from which a
    voice is known. embedding: whether an event tells it."""

    hop: float = 0.1
    margin: float = 6.0
    smooth: int = 4  # 0.4 s, a word's length: fewer false alarms at as many words heard than 0.1 to 0.3 s
    refractory: float = 1.0
    threshold: float = 0.9
    thresholds: dict[str, float] = field(default_factory=dict)
    voice: float = 1.0
    embedding: bool = False


@dataclass
class Spent:
    """What a stream cost: seconds of it, windows heard and skipped, CPU-seconds of all that was done; and what its samples were."""

    heard: float = 0.0
    windows: int = 0
    skipped: int = 0
    seconds: float = 0.0
    clipped: int = 0
    loudest: float = field(default=-np.inf)

    def line(self) -> str:
        share = 100 * self.seconds / self.heard if self.heard else 0.0
        return f"heard {self.heard:.1f} s: {self.windows} windows, {self.skipped} skipped as quiet, {share:.1f} % of one core"


def levels(samples: Samples, rate: int) -> Samples:
    """(frames,) decibels of full scale of each 20 ms."""
    frame = round(FRAME_SECONDS * rate)
    whole = samples[: len(samples) // frame * frame].reshape(-1, frame)
    power: Samples = 10 * np.log10(np.square(whole).mean(1) + 1e-12)
    return power


class Gate:
    """Lets pass what stands out of the room's own noise: a quiet window costs no inference."""

    def __init__(self, rate: int, margin: float) -> None:
        self.rate, self.margin = rate, margin
        self.past: deque[float] = deque(maxlen=round(FLOOR_SECONDS / FRAME_SECONDS))

    def is_open(self, hop: Samples, window: Samples) -> bool:
        self.past.extend(levels(hop, self.rate).tolist())
        floor = max(float(np.quantile(self.past, 0.1)) if self.past else LOWEST_LEVEL, LOWEST_LEVEL)
        return float(levels(window, self.rate).max()) >= floor + self.margin


def events(
    hops: Iterator[Samples],
    session: onnxruntime.InferenceSession,
    manifest: dict[str, Any],
    labels: list[str],
    voices: Voices,
    settings: Settings,
    spent: Spent,
) -> Iterator[dict[str, Any]]:
    """hops: of `settings.hop` seconds each, one after another. Yields an event as soon as it is heard."""
    began = time.process_time()
    rate, window = manifest["sample_rate"], np.zeros(manifest["window"], np.float32)
    gate, recent, last = Gate(rate, settings.margin), deque[tuple[Samples, Samples]](maxlen=settings.smooth), dict[str, float]()
    for hop in hops:
        window = np.concatenate([window, hop])[-len(window) :]
        spent.heard, spent.seconds = spent.heard + len(hop) / rate, time.process_time() - began
        spent.clipped += int((np.abs(hop) >= 1 - 1 / FULL_SCALE).sum())
        spent.loudest = max(spent.loudest, float(np.abs(hop).max(initial=0)))
        if not gate.is_open(hop, window):
            spent.skipped += 1
            recent.clear()
            continue
        recent.append(classify(session, window[None]))
        spent.windows += 1
        shares, embedding = (np.mean([found[i] for found in recent], 0) for i in (0, 1))
        keyword, probability = labels[int(shares.argmax())], float(shares.max())
        threshold = settings.thresholds.get(keyword, settings.threshold)
        if len(recent) < settings.smooth or probability < threshold or keyword.startswith("_"):
            continue
        if spent.heard - last.get(keyword, -np.inf) >= settings.refractory:
            speaker, similarity = whose(embedding, voices, settings.voice)
            yield {
                "time": round(spent.heard, 2),
                "keyword": keyword,
                "probability": round(probability, 4),
                "speaker": speaker,
                "similarity": similarity,
                **({"embedding": unit(embedding).round(4).tolist()} if settings.embedding else {}),
            }
        last[keyword] = spent.heard  # a keyword that goes on is one event


def whose(embedding: Samples, voices: Voices, threshold: float) -> tuple[str, float | None]:
    """The nearest voice and the cosine similarity to it; unknown below the threshold, or where nobody was enrolled."""
    if not voices:
        return UNKNOWN, None
    name, similarity = max(((name, float(voice @ unit(embedding))) for name, voice in voices.items()), key=lambda found: found[1])
    return (name if similarity >= threshold else UNKNOWN), round(similarity, 3)


def unit(embedding: Samples) -> Samples:
    length_one: Samples = embedding / np.linalg.norm(embedding)
    return length_one


def warnings(spent: Spent, rate: int) -> Iterator[str]:
    if not spent.heard:
        yield "the stream ended before anything was heard"
    elif spent.loudest <= 10 ** (LOWEST_LEVEL / 20):
        yield "nothing but silence was heard: is the microphone muted?"
    if spent.clipped > 1e-3 * spent.heard * rate:
        yield f"{100 * spent.clipped / (spent.heard * rate):.1f} % of the samples are clipped: turn the input down"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Listens to a stream: one JSON line for each keyword.")
    default = Settings()
    parser.add_argument("source", nargs="?", help="a recording, or - for standard input; default: the microphone")
    parser.add_argument("--hop", type=float, default=default.hop, help="seconds between two windows")
    parser.add_argument("--margin", type=float, default=default.margin, help="decibels above the room's noise to be heard at all")
    parser.add_argument("--smooth", type=int, default=default.smooth, help="windows whose mean decides")
    parser.add_argument("--refractory", type=float, default=default.refractory, help="seconds until a keyword is a new one")
    parser.add_argument("--false-alarms", type=float, help="an hour, of each keyword; default: the fewest that the manifest has")
    parser.add_argument("--threshold", type=float, help="of every keyword's probability, instead of the manifest's")
    parser.add_argument("--voice-threshold", type=float, help=f"a voice's; default: {LISTENING:g} %% of others are taken for it")
    parser.add_argument("--embedding", action="store_true", help="tell each event's speaker embedding as well")
    parser.add_argument("--model-folder", type=Path, default=Path(__file__).parent, help="default: this script's folder")
    parser.add_argument("--voices", type=Path, help=f"default: {VOICES_FILE} in the model's folder, where it is")
    parser.add_argument("--cost", action="store_true", help="say at the end what listening took")
    return parser.parse_args()


def checked(arguments: argparse.Namespace, manifest: dict[str, Any], voices: Voices) -> Settings:
    """Raises ValueError for what no stream can be heard with."""
    if arguments.threshold is not None and arguments.false_alarms is not None:
        raise ValueError("--threshold stands for the manifest's thresholds, from which --false-alarms chooses: give one of them")
    chosen = (voice_threshold(manifest, LISTENING, among) for among in ("stream_voice_thresholds", "voice_thresholds"))
    voice = next((value for value in (arguments.voice_threshold, *chosen) if value is not None), None)
    if voices and voice is None:
        raise ValueError("the manifest supports no threshold for voices: give --voice-threshold")
    settings = Settings(
        hop=arguments.hop,
        margin=arguments.margin,
        smooth=arguments.smooth,
        refractory=arguments.refractory,
        threshold=Settings.threshold if arguments.threshold is None else arguments.threshold,
        thresholds={} if arguments.threshold is not None else keyword_thresholds(manifest, arguments.false_alarms),
        voice=Settings.voice if voice is None else voice,
        embedding=arguments.embedding,
    )
    longest = manifest["window"] / manifest["sample_rate"]
    if not FRAME_SECONDS <= settings.hop <= longest:
        raise ValueError(f"--hop is {settings.hop:g}; it is from {FRAME_SECONDS:g} to the model's window, {longest:.3g} seconds")
    if settings.smooth < 1 or not 0 <= settings.threshold <= 1 or not settings.refractory >= 0 or not settings.margin >= 0:
        raise ValueError("--smooth is at least 1, --threshold from 0 to 1, --refractory and --margin at least 0")
    return settings


def keyword_thresholds(manifest: dict[str, Any], rate: float | None) -> dict[str, float]:
    """Of each keyword, for a rate of false alarms an hour; None: the lowest one that the manifest supports, if any.

    Raises ValueError for a rate that it does not support."""
    try:
        stated = {
            float(entry["false_alarms_an_hour"]): {
                name: np.inf if own["threshold"] is None else float(own["threshold"]) for name, own in entry["keywords"].items()
            }
            for entry in manifest.get("keyword_thresholds", ())
            if "keywords" in entry
        }
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ValueError("manifest.json is damaged: export the model again") from None
    if rate is None and not stated:
        return {}
    if rate is not None and rate not in stated:
        known = ", ".join(f"{known:g}" for known in stated) or "none"
        raise ValueError(f"--false-alarms is {rate:g}; the manifest has thresholds for: {known}; or give --threshold")
    return stated[min(stated) if rate is None else rate]


def main() -> int:
    arguments, spent = parsed(), Spent()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service that is stopped says what it has to say, too
    try:
        session, manifest, labels = load_model(arguments.model_folder)
        voices = read_voices(arguments.voices or arguments.model_folder / VOICES_FILE, manifest, must_exist=bool(arguments.voices))
        settings, rate = checked(arguments, manifest, voices), manifest["sample_rate"]
        size = round(settings.hop * rate)
        if arguments.source is None:
            hops = hops_of_microphone(rate, size)
        elif arguments.source == "-":
            hops = hops_of_stream(sys.stdin.buffer, rate, size)
        else:
            hops = hops_of_file(Path(arguments.source), rate, size)
        for event in events(hops, session, manifest, labels, voices, settings, spent):
            print(json.dumps(event), flush=True)
    except ValueError as error:
        print(f"listen: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if not spent.heard:
            return 130
    except BrokenPipeError:  # whoever read the events has heard enough
        sys.stdout = None
        return 0
    if settings.thresholds and settings != dataclasses.replace(
        Settings(), thresholds=settings.thresholds, voice=settings.voice, embedding=settings.embedding
    ):
        print("listen: the manifest's thresholds were chosen with other --hop, --margin, --smooth or --refractory", file=sys.stderr)
    for warning in warnings(spent, rate):
        print(f"listen: {warning}", file=sys.stderr)
    if arguments.cost:
        print(f"listen: {spent.line()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
