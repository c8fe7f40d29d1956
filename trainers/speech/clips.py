"""The clips that an import is to read, and their files, read and checked, some at a time."""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import soundfile

from search_spaces.architecture import SAMPLE_RATE
from trainers.speech.decoding import BadAudio, audio_form, decode
from trainers.speech.parquet import SILENCE

READ_AHEAD = 16  # clips read and decoded at a time


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One second of a recording below the root, from sample `start`, times `volume`."""

    recording: str
    start: int
    volume: float


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What becomes a row. id: the file's path below the root, with slashes; a clip with a piece has no file of its own."""

    id: str
    split: str
    keyword: str | None
    speaker: str | None
    piece: Piece | None = None


@dataclass(frozen=True, kw_only=True)
class Audio:
    data: bytes
    digest: str | None  # None: made here, no file
    seconds: float
    form: str | None  # None: 16 kHz mono


def read_clips(root: Path, clips: Iterable[Clip], official: bool) -> Iterator[tuple[Clip, Audio | BadAudio]]:
    """In order. libsndfile and the hash run outside Python's lock, so that threads help."""
    rest = iter(clips)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        while batch := list(islice(rest, READ_AHEAD)):
            yield from zip(batch, pool.map(lambda clip: _read(root, clip, official), batch))


def _read(root: Path, clip: Clip, official: bool) -> Audio | BadAudio:
    """Decodes all of it: only that finds a damaged file."""
    try:
        data = _cut(root, clip.piece) if clip.piece else (root / clip.id).read_bytes()
        rate, channels = audio_form(data)
        form = f"{rate} Hz, {channels} channels" if channels > 1 else f"{rate} Hz mono"
        plain = (rate, channels) == (SAMPLE_RATE, 1)
        if official and not plain:
            raise BadAudio(f"{form}; the corpus has {SAMPLE_RATE} Hz mono")
        seconds = len(decode(data, silence=clip.keyword == SILENCE)) / SAMPLE_RATE
    except BadAudio as bad:
        return bad
    except OSError as error:
        return BadAudio(f"unreadable: {error.strerror}")
    digest = None if clip.piece else hashlib.sha256(data).hexdigest()[:32]
    return Audio(data=data, digest=digest, seconds=seconds, form=None if plain else form)


def _cut(root: Path, piece: Piece) -> bytes:
    """As a WAV file: with 16 bits it has no field that differs from one day to the next."""
    x, rate = soundfile.read(root / piece.recording, SAMPLE_RATE, piece.start, dtype="int16")
    file = io.BytesIO()
    soundfile.write(file, (piece.volume * x).round().astype("<i2"), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
