"""Audio of a corpus, decoded once into a cache that every process maps."""

import hashlib
import io
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray

from search_spaces.architecture import SAMPLE_RATE
from trainers.speech.corpora import FULL_SCALE, Samples
from trainers.speech.parquet import SILENCE, open_parquet, readable

SMALLEST_PEAK = 1e-4  # of full scale: below it a clip is silent
LARGEST_PEAK = 2.0  # of full scale: a float file that is louder is in another scale; up to there peaks are clipped
LOWEST_RATE = 4_000  # Hz
LARGEST = 8e9  # bytes of a decoded file: a few packed ones can claim any length
BATCH_ROWS = 64  # clips decoded at a time
SAMPLES_FILE, INDEX_FILE = "samples.i16", "index.parquet"

_UNREADABLE = (soundfile.SoundFileError, OSError, RuntimeError, ValueError, TypeError)  # all seen from damaged files


class BadAudio(Exception):
    """A clip that cannot be used; the text is the reason."""


def decode(data: bytes | Path, *, silence: bool = False) -> Samples:
    """An encoded audio file (bytes or path) -> its samples at 16 kHz, channels averaged, as int16 (samples,).

    Raises BadAudio when libsndfile cannot read it, when it is empty, silent (unless `silence` is expected), not finite, or in
    another scale than that of full scale 1.
    """
    if data == b"":
        raise BadAudio("empty")
    try:
        with soundfile.SoundFile(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
            if (size := 4 * file.frames * file.channels) > LARGEST:
                raise BadAudio(f"{size / 1e9:.0f} GB when it is decoded, at most {LARGEST / 1e9:.0f} are read: cut it")
            x_nc, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except _UNREADABLE as error:
        raise _bad(error) from None
    if rate < LOWEST_RATE:
        raise BadAudio(f"sample rate {rate} Hz is below {LOWEST_RATE}")
    x = _resample(x_nc.mean(1), rate)
    if not len(x):
        raise BadAudio("empty")
    if not np.isfinite(x).all():
        raise BadAudio("not finite")
    peak = float(np.abs(x).max())
    if peak < SMALLEST_PEAK and not silence:
        raise BadAudio("silent")
    if peak > LARGEST_PEAK:
        raise BadAudio(f"samples up to {peak:.3g}, where full scale is 1: scale them, or write whole numbers")
    return (x * FULL_SCALE).round().clip(-FULL_SCALE, FULL_SCALE - 1).astype("<i2")


def audio_form(data: bytes) -> tuple[int, int]:
    """Sample rate in Hz and channels of an encoded audio file, from its header. Raises BadAudio as `decode` does."""
    if data == b"":
        raise BadAudio("empty")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            return file.samplerate, file.channels
    except _UNREADABLE as error:
        raise _bad(error) from None


def content_hash(path: Path, cache: Path) -> str:
    """SHA-256 of a file; remembered by path, size and time of change, because hashing a large file takes minutes."""
    status = path.stat()
    key = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    stamp = cache / "stamps" / hashlib.sha256(key.encode()).hexdigest()[:16]
    if stamp.is_file() and len(known := stamp.read_text()) == 64:
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    part = stamp.with_name(
        f".{stamp.name}-{os.getpid()}-{threading.get_ident()}"
    )  # not of `tempfile`: its maker alone could read it
    part.write_text(digest)
    part.replace(stamp)
    return digest


def decoded(path: Path, table: pa.Table, folder: Path, progress: Callable[[int], None]) -> Path:
    """The cache folder of a file, made if need be: next to its place, then renamed, so that it is whole when it is there."""
    if _is_whole(folder):
        progress(len(table))
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-", ignore_cleanup_errors=True) as temporary:
        part = Path(temporary) / folder.name
        part.mkdir()
        _decode_file(path, table, part, progress)
        try:
            part.rename(folder)
        except OSError:  # another process was faster, or a machine stopped before the samples were on disk
            if not _is_whole(folder):
                shutil.rmtree(folder)
                part.rename(folder)
    return folder


def _is_whole(folder: Path) -> bool:
    """True when the samples have the size that the index states (a machine may have stopped before they were on disk)."""
    try:
        lengths = pq.read_table(folder / INDEX_FILE, columns=["length"])["length"].to_numpy()
        return (folder / SAMPLES_FILE).stat().st_size == 2 * int(lengths.sum())
    except (OSError, pa.ArrowException):
        return False


def _decode_file(path: Path, table: pa.Table, folder: Path, progress: Callable[[int], None]) -> None:
    lengths: list[int] = []
    reasons: list[str | None] = []
    clips = zip(table["id"].to_pylist(), table["keyword"].to_pylist(), _audio(path), strict=True)
    with (folder / SAMPLES_FILE).open("wb") as out, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        while batch := list(islice(clips, BATCH_ROWS)):
            for samples, reason in pool.map(lambda clip: _decode_clip(path, *clip), batch):
                out.write(samples.tobytes())
                lengths.append(len(samples))
                reasons.append(reason)
            progress(len(lengths))
    starts = np.cumsum([0, *lengths])[:-1]
    index = pa.table({"start": starts, "length": pa.array(lengths, pa.int64()), "reason": pa.array(reasons, pa.string())})
    pq.write_table(index, folder / INDEX_FILE)


def _audio(path: Path) -> Iterator[Mapping[str, Any] | None]:
    with open_parquet(path, ["audio"]) as file, readable(path):
        for batch in file.iter_batches(BATCH_ROWS, columns=["audio"]):
            yield from batch["audio"].to_pylist()


def _decode_clip(parquet: Path, clip: str, keyword: str | None, audio: Mapping[str, Any] | None) -> tuple[Samples, str | None]:
    """Samples and None, or no samples and the reason. Raises ValueError for a path that leaves the Parquet file's folder."""
    try:
        return decode(_source(parquet, clip, audio or {}), silence=keyword == SILENCE), None
    except BadAudio as bad:
        return np.zeros(0, "<i2"), str(bad)


def _source(parquet: Path, clip: str, audio: Mapping[str, Any]) -> bytes | Path:
    data, name = audio.get("bytes"), audio.get("path")
    if data is not None:
        return bytes(data)
    if not name:
        raise BadAudio("neither bytes nor a path")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"clip {clip!r} names the audio {name!r}: a path must be relative, without '..', in {parquet.parent}")
    return parquet.parent / str(name)


def _bad(error: Exception) -> BadAudio:
    """Without the object's address that soundfile names where there is no file."""
    reason = re.sub(r"^Error opening <[^>]*>: ", "", str(error).splitlines()[0]) if str(error) else type(error).__name__
    return BadAudio(f"unreadable: {reason}")


def _resample(x: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    if rate == SAMPLE_RATE or not len(x):
        return x
    if rate // math.gcd(rate, SAMPLE_RATE) > 5_000:  # the filter bank has a row for each phase: gigabytes for odd rates
        rate = round(rate / 25) * 25  # changes the speed by 0.3 % at most
        if rate == SAMPLE_RATE:
            return x
    resampled: NDArray[np.float32] = torchaudio.functional.resample(torch.from_numpy(x), rate, SAMPLE_RATE).numpy()
    return resampled
