"""Speech corpora: Parquet files, one row a clip, decoded once into memory-mapped 16 kHz samples.

Columns: id, split (train | val | test), keyword (null: unlabelled; `_unknown_` and `_silence_` are classes), speaker_id (null:
unknown), duration_s, audio (struct<bytes, path>: an encoded file, or its path relative to the Parquet file's folder).
"""

import functools
import hashlib
import io
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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

SPLITS = ("train", "val", "test")
SILENCE = "_silence_"
UNKNOWN = "_unknown_"
LARGEST_BAD_SHARE = 0.01
SMALLEST_PEAK = 1e-4  # of full scale: below it a clip is silent
LOWEST_RATE = 4_000  # Hz
FULL_SCALE = 32_768
BATCH_ROWS = 64  # clips decoded at a time
ROW_GROUP_BYTES = 32 << 20
SAMPLES_FILE, INDEX_FILE = "samples.i16", "index.parquet"
COLUMNS = ("id", "split", "keyword", "speaker_id")  # read whole; the audio is streamed
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "split": pa.string(),
        "keyword": pa.string(),
        "speaker_id": pa.string(),
        "duration_s": pa.float32(),
        "audio": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    }
)

Progress = Callable[[int, int], None]  # (clips done, clips in all)
Samples = NDArray[np.int16]
Rows = NDArray[np.intp]


class BadAudio(Exception):
    """A clip that cannot be used; the text is the reason."""


class MappedSamples:
    """The decoded clips of one Parquet file, end to end. Pickles as its path, so that workers map the same pages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.array: Samples = np.memmap(path, "<i2", "r") if path.stat().st_size else np.zeros(0, "<i2")

    def __reduce__(self) -> tuple[type["MappedSamples"], tuple[Path]]:
        return MappedSamples, (self.path,)


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Clips of one or several files; a clip is a row number from 0. Skipped clips have no row.

    samples: the decoded audio of each file. files, starts, lengths: where a clip lies (file number, first sample, samples).
    ids, splits, keywords, speakers: one entry a clip; None where a keyword or a speaker is not known.
    digest: the same for the same files in the same order. synthetic: any file is marked as synthetic speech.
    skipped: (id, reason) of each clip that could not be used.
    """

    samples: tuple[MappedSamples, ...]
    files: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    ids: NDArray[np.object_]
    splits: NDArray[np.object_]
    keywords: NDArray[np.object_]
    speakers: NDArray[np.object_]
    digest: str
    synthetic: bool
    skipped: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def clip(self, i: int) -> NDArray[np.float32]:
        """All samples of clip `i` at 16 kHz, in [-1, 1)."""
        start = self.starts[i]
        samples: Samples = self.samples[self.files[i]].array[start : start + self.lengths[i]]
        return np.divide(samples, FULL_SCALE, dtype=np.float32)

    def length(self, i: int) -> int:
        """Samples of clip `i`."""
        return int(self.lengths[i])

    def rows(self, split: str | None = None, *, with_keyword: bool = False, with_speaker: bool = False) -> Rows:
        """Row numbers, rising, of a split (None: all), optionally only those whose keyword or speaker is known."""
        assert split is None or split in SPLITS, split
        kept = np.ones(len(self), bool) if split is None else self.splits == split
        if with_keyword:
            kept = kept & _known(self.keywords)
        if with_speaker:
            kept = kept & _known(self.speakers)
        return np.flatnonzero(kept)

    @functools.cached_property
    def keyword_labels(self) -> tuple[str, ...]:
        """The keywords of the train split, sorted. Raises ValueError when another split has a keyword that train has not."""
        labels = set(self.keywords[self.rows("train", with_keyword=True)])
        strange = sorted(set(self.keywords[self.rows(with_keyword=True)]) - labels)
        if strange:
            raise ValueError(f"keyword {strange[0]!r} is in val or test but not in train: add training clips or make it null")
        return tuple(sorted(labels))


def load_corpus(paths: Sequence[Path], cache: Path, progress: Progress | None = None) -> Corpus:
    """The files as one corpus, end to end. Each is decoded once, into `cache`; later calls, from any process, only map it.

    Decoded audio is 16 kHz mono int16. A file is known by its content; audio that it refers to by path is taken to be unchanged.
    Raises ValueError for a file that is missing or not in the format, for no rows, duplicate ids, an unknown split, a speaker
    in two splits, and when more than 1 % of the clips are unreadable, empty or silent.
    """
    if not paths:
        raise ValueError("no corpus file is given")
    tables = [_columns(Path(path)) for path in paths]
    columns = {name: _objects(table[name] for table in tables) for name in COLUMNS}
    _check_columns(columns)
    hashes: list[str] = []
    folders: list[Path] = []
    done, total = 0, len(columns["id"])
    for path, table in zip(map(Path, paths), tables, strict=True):
        hashes.append(_content_hash(path, cache))
        folders.append(_decoded(path, table, cache / hashes[-1][:16], _shifted(progress, done, total)))
        done += len(table)
    indices = [pq.read_table(folder / INDEX_FILE) for folder in folders]
    reasons = _objects(index["reason"] for index in indices)
    bad = _known(reasons)
    skipped = tuple(zip(columns["id"][bad], reasons[bad], strict=True))
    _check_skipped(skipped, total, folders)
    return Corpus(
        samples=tuple(MappedSamples(folder / SAMPLES_FILE) for folder in folders),
        files=np.repeat(np.arange(len(indices)), [len(index) for index in indices])[~bad],
        starts=np.concatenate([index["start"].to_numpy() for index in indices])[~bad],
        lengths=np.concatenate([index["length"].to_numpy() for index in indices])[~bad],
        ids=columns["id"][~bad],
        splits=columns["split"][~bad],
        keywords=columns["keyword"][~bad],
        speakers=columns["speaker_id"][~bad],
        digest=hashlib.sha256("".join(hashes).encode()).hexdigest()[:16],
        synthetic=any((table.schema.metadata or {}).get(b"synthetic") == b"true" for table in tables),
        skipped=skipped,
    )


def check_trainable(corpus: Corpus) -> None:
    """Raises ValueError when the corpus cannot train and validate keywords and speakers."""
    for split in ("train", "val"):
        if not len(corpus.rows(split)):
            raise ValueError(f"the corpus has no clip in split {split!r}: training needs train and val")
        speakers = sorted(set(corpus.speakers[corpus.rows(split, with_speaker=True)]))
        if len(speakers) < 2:
            raise ValueError(f"split {split!r} has {len(speakers)} speakers {speakers}: at least 2 are needed")
    labels = corpus.keyword_labels
    if len(labels) < 2:
        raise ValueError(f"split 'train' has {len(labels)} keywords {list(labels)}: at least 2 are needed")
    if not len(corpus.rows("val", with_keyword=True)):
        raise ValueError("no clip of split 'val' has a keyword: the keyword error cannot be measured")


def describe(corpus: Corpus) -> dict[str, Any]:
    """Clips, hours, keywords and speakers of each split and in all; skipped clips; whether the speech is synthetic."""
    return {
        "splits": {split: _summary(corpus, corpus.rows(split)) for split in SPLITS},
        "total": _summary(corpus, corpus.rows()),
        "skipped": [{"id": clip, "reason": reason} for clip, reason in corpus.skipped],
        "synthetic": corpus.synthetic,
        "digest": corpus.digest,
    }


def write_corpus(path: Path, rows: Iterable[Mapping[str, Any]], synthetic: bool = False) -> int:
    """Streams rows (the columns of the format) to a Parquet file, whole or not at all; returns how many.

    Raises ValueError when there are no rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = SCHEMA.with_metadata({"synthetic": "true" if synthetic else "false"})
    labels = ["split", "keyword", "speaker_id"]  # a dictionary of encoded audio would only cost memory
    count = 0
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-", ignore_cleanup_errors=True) as folder:
        part = Path(folder) / path.name
        with pq.ParquetWriter(part, schema, compression="none", use_dictionary=labels) as writer:
            for group in _row_groups(rows):
                writer.write_table(pa.Table.from_pylist(group, schema))
                count += len(group)
        if not count:
            raise ValueError(f"no rows to write to {path}")
        os.replace(part, path)
    return count


def decode(data: bytes | Path, *, silence: bool = False) -> Samples:
    """An encoded audio file (bytes or path) -> its samples at 16 kHz, channels averaged, as int16 (samples,).

    Raises BadAudio when libsndfile cannot read it, when it is empty, and when it is silent (unless `silence` is expected).
    """
    if data == b"":
        raise BadAudio("empty")
    try:
        x_nc, rate = soundfile.read(io.BytesIO(data) if isinstance(data, bytes) else data, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise BadAudio(f"unreadable: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None
    if rate < LOWEST_RATE:
        raise BadAudio(f"sample rate {rate} Hz is below {LOWEST_RATE}")
    x = _resample(x_nc.mean(1), rate)
    if not len(x):
        raise BadAudio("empty")
    if not np.isfinite(x).all():
        raise BadAudio("not finite")
    if np.abs(x).max() < SMALLEST_PEAK and not silence:
        raise BadAudio("silent")
    return (x * FULL_SCALE).round().clip(-FULL_SCALE, FULL_SCALE - 1).astype("<i2")


def open_parquet(path: Path, required: Iterable[str]) -> pq.ParquetFile:
    """Raises ValueError when the file is missing, is not Parquet or lacks a required column."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        # without pre-buffering a file that is one huge row group is read page by page
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except pa.ArrowException:
        raise ValueError(f"{path} is not a Parquet file") from None
    missing = [name for name in required if name not in file.schema_arrow.names]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}")
    return file


def check_share(skipped: Sequence[tuple[str, str]], total: int) -> None:
    """Raises ValueError when more than 1 % of `total` clips were skipped."""
    if len(skipped) > LARGEST_BAD_SHARE * total:
        first = "; ".join(f"{clip}: {reason}" for clip, reason in skipped[:3])
        raise ValueError(f"{len(skipped)} of {total} clips cannot be used, more than {LARGEST_BAD_SHARE:.0%}: {first}")


def _columns(path: Path) -> pa.Table:
    """The small columns of a file as strings; the audio stays on disk."""
    with open_parquet(path, SCHEMA.names) as file:
        audio = file.schema_arrow.field("audio").type
        if not pa.types.is_struct(audio) or not {"bytes", "path"} <= {field.name for field in audio}:
            raise ValueError(f"{path}: column audio is {audio}, not struct<bytes: binary, path: string>")
        if not file.metadata.num_rows:
            raise ValueError(f"{path} has no rows")
        try:
            table = file.read(list(COLUMNS))
            return table.cast(pa.schema([(name, pa.string()) for name in COLUMNS], table.schema.metadata))
        except pa.ArrowException as error:
            raise ValueError(f"{path}: {', '.join(COLUMNS)} cannot be read as text: {error}") from None


def _objects(columns: Iterable[pa.ChunkedArray]) -> NDArray[np.object_]:
    """Arrow columns end to end as one array of Python objects, None where null."""
    return np.array([value for column in columns for value in column.to_pylist()], object)


def _known(values: NDArray[np.object_]) -> NDArray[np.bool_]:
    return np.array([value is not None for value in values], bool)


def _check_columns(columns: Mapping[str, NDArray[np.object_]]) -> None:
    repeated = [clip for clip, count in Counter(columns["id"]).items() if count > 1 or clip is None]
    if repeated:
        raise ValueError(f"id {repeated[0]!r} is null or given to several clips: ids are unique over all files")
    strange = set(columns["split"]) - set(SPLITS)
    if strange:
        raise ValueError(f"split {sorted(strange, key=str)[0]!r} is not one of {', '.join(SPLITS)}")
    seen: dict[str, str] = {}
    for speaker, split in zip(columns["speaker_id"], columns["split"], strict=True):
        if speaker is not None and seen.setdefault(speaker, split) != split:
            raise ValueError(f"speaker {speaker!r} is in the splits {seen[speaker]} and {split}: splits must not share speakers")


def _check_skipped(skipped: Sequence[tuple[str, str]], total: int, folders: Iterable[Path]) -> None:
    try:
        check_share(skipped, total)
    except ValueError:
        for folder in folders:  # audio named by path may be repaired without a change of the Parquet file: read it again
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _shifted(progress: Progress | None, done: int, total: int) -> Callable[[int], None]:
    """Progress of one file -> progress of all."""
    return lambda clips: progress(done + clips, total) if progress else None


def _content_hash(path: Path, cache: Path) -> str:
    """SHA-256 of a file; remembered by path, size and time of change, because hashing a large file takes minutes."""
    status = path.stat()
    key = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    stamp = cache / "stamps" / hashlib.sha256(key.encode()).hexdigest()[:16]
    if stamp.is_file() and len(known := stamp.read_text()) == 64:
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=stamp.parent, delete=False) as part:
        part.write(digest)
    os.replace(part.name, stamp)
    return digest


def _decoded(path: Path, table: pa.Table, folder: Path, progress: Callable[[int], None]) -> Path:
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
    with open_parquet(path, ["audio"]) as file:
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


def _resample(x: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    if rate == SAMPLE_RATE or not len(x):
        return x
    if rate // math.gcd(rate, SAMPLE_RATE) > 5_000:  # the filter bank has a row for each phase: gigabytes for odd rates
        rate = round(rate / 25) * 25  # changes the speed by 0.3 % at most
        if rate == SAMPLE_RATE:
            return x
    resampled: NDArray[np.float32] = torchaudio.functional.resample(torch.from_numpy(x), rate, SAMPLE_RATE).numpy()
    return resampled


def _row_groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["audio"]["bytes"] or b"")
        if size >= ROW_GROUP_BYTES or len(group) >= 10_000:
            yield group
            group, size = [], 0
    if group:
        yield group


def _summary(corpus: Corpus, rows: Rows) -> dict[str, Any]:
    return {
        "clips": len(rows),
        "hours": float(corpus.lengths[rows].sum() / SAMPLE_RATE / 3600),
        "keywords": len(set(corpus.keywords[rows]) - {None}),
        "speakers": len(set(corpus.speakers[rows]) - {None}),
    }
