"""What listen.py hears, in hops: a recording, a stream of PCM or WAV, a microphone."""

from __future__ import annotations

import queue
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from classify import Samples, load_clip

FULL_SCALE = 32768
ENDLESS = 2**30 - 2**12  # frames, and more, state headers whose writers did not know
MOST_WAITING = 3.0  # seconds of a microphone's sound
LONGEST_SILENCE = 5.0  # seconds without any


def hops_of(samples: Samples, size: int) -> Iterator[Samples]:
    """A recording in hops; the last is filled up with silence."""
    for start in range(0, len(samples), size):
        yield np.pad(samples[start : start + size], (0, max(0, start + size - len(samples))))


def hops_of_file(path: Path, rate: int, size: int) -> Iterator[Samples]:
    """A recording in hops, read as it is heard where it is as the model hears: an hour takes no more memory than a second."""
    try:
        with wave.open(str(path), "rb") as clip:
            is_plain = (clip.getnchannels(), clip.getsampwidth(), clip.getframerate()) == (1, 2, rate) and clip.getnframes() > 0
    except (wave.Error, EOFError, OSError):
        is_plain = False
    return hops_of_stream(path.open("rb"), rate, size) if is_plain else hops_of(load_clip(path, rate, silence=True), size)


def hops_of_stream(stream: BinaryIO, rate: int, size: int) -> Iterator[Samples]:
    """Raw PCM (16 bits, little-endian, one channel, the model's rate), or a WAV file that says so. Raises ValueError for others."""
    start = stream.read(4)
    read = stream.read
    if start == b"RIFF":
        read = _wav_reader(stream, rate)
        start = b""
    while len(data := start + read(2 * size - len(start))) >= 2:
        start = b""
        samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / FULL_SCALE
        yield np.pad(samples, (0, size - len(samples)))


def _wav_reader(stream: BinaryIO, rate: int) -> Any:
    try:
        prefixed: Any = _Prefixed(b"RIFF", stream)
        clip = wave.open(prefixed, "rb")  # noqa: SIM115
    except (wave.Error, EOFError) as error:
        raise ValueError(f"the stream is no WAV file that can be read ({str(error) or 'it is cut off'})") from None
    if clip.getframerate() != rate:
        raise ValueError(f"the stream has {clip.getframerate()} Hz, the model hears {rate}: resample it first")
    if clip.getnchannels() != 1:
        raise ValueError(f"the stream has {clip.getnchannels()} channels: send one")
    if clip.getsampwidth() != 2:
        raise ValueError(f"the stream has {8 * clip.getsampwidth()} bits a sample: send 16")
    if not 0 < clip.getnframes() < ENDLESS:  # who streams does not know how long it will be
        return stream.read
    return lambda count: clip.readframes(count // 2)


class _Prefixed:
    """A stream whose first bytes were read already. `wave` asks for no more of a file."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self.start, self.stream = start, stream

    def read(self, count: int) -> bytes:
        taken, self.start = self.start[:count], self.start[count:]
        return taken + self.stream.read(count - len(taken))

    def tell(self) -> int:
        raise OSError("a stream has no position")

    def close(self) -> None: ...

    def flush(self) -> None: ...


def hops_of_microphone(rate: int, size: int) -> Iterator[Samples]:
    """Raises ValueError where there is no `sounddevice`, or no microphone."""
    try:
        import sounddevice  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except (ImportError, OSError):  # OSError: the package without its library
        raise ValueError(
            "no microphone without sounddevice: pip install sounddevice, or give a WAV file, or - and raw PCM"
        ) from None
    waiting: queue.Queue[bytes] = queue.Queue(max(2, int(MOST_WAITING * rate / size)))

    def take(data: Any, count: int, times: Any, status: Any) -> None:
        lost = str(status) if status else ""
        try:
            waiting.put_nowait(bytes(data))
        except queue.Full:
            lost = "this machine hears more slowly than it is spoken to"
        if lost:
            print(f"listen: sound was lost: {lost}", file=sys.stderr, flush=True)

    try:
        with sounddevice.RawInputStream(rate, size, channels=1, dtype="int16", callback=take):
            while True:
                yield np.frombuffer(waiting.get(timeout=LONGEST_SILENCE), "<i2").astype(np.float32) / FULL_SCALE
    except queue.Empty:
        raise ValueError(f"the microphone has sent nothing for {LONGEST_SILENCE:g} seconds: is it still there?") from None
    except sounddevice.PortAudioError as error:
        raise ValueError(f"the microphone does not answer: {error}") from None
