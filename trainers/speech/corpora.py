"""Speech corpora: Parquet files, end to end, with their audio mapped from the cache."""

import functools
import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from search_spaces.architecture import SAMPLE_RATE
from trainers.speech.decoding import FULL_SCALE, INDEX_FILE, SAMPLES_FILE, Samples, content_hash, decoded
from trainers.speech.parquet import COLUMNS, SPLITS, check_columns, read_columns

LARGEST_BAD_SHARE = 0.01

Progress = Callable[[int, int], None]  # (clips done, clips in all)
Rows = NDArray[np.intp]


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
    tables = [read_columns(Path(path)) for path in paths]
    columns = {name: _objects(table[name] for table in tables) for name in COLUMNS}
    check_columns(columns)
    hashes: list[str] = []
    folders: list[Path] = []
    done, total = 0, len(columns["id"])
    for path, table in zip(map(Path, paths), tables, strict=True):
        hashes.append(content_hash(path, cache))
        folders.append(decoded(path, table, cache / hashes[-1][:16], _shifted(progress, done, total)))
        done += len(table)
    indices = [pq.read_table(folder / INDEX_FILE) for folder in folders]
    reasons = _objects(index["reason"] for index in indices)
    bad = _known(reasons)
    skipped = tuple(zip(columns["id"][bad], reasons[bad], strict=True))
    _check_skipped(skipped, total, dict(zip(folders, indices, strict=True)))
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
    """Raises ValueError when the corpus cannot train, validate and test keywords and speakers."""
    for split in SPLITS:
        if not len(corpus.rows(split)):
            raise ValueError(f"the corpus has no clip in split {split!r}: a search needs {', '.join(SPLITS)}")
        speakers = sorted(set(corpus.speakers[corpus.rows(split, with_speaker=True)]))
        if len(speakers) < 2:
            raise ValueError(f"split {split!r} has {len(speakers)} speakers {speakers}: at least 2 are needed")
    labels = corpus.keyword_labels
    if len(labels) < 2:
        raise ValueError(f"split 'train' has {len(labels)} keywords {list(labels)}: at least 2 are needed")
    for split in ("val", "test"):
        if not len(corpus.rows(split, with_keyword=True)):
            raise ValueError(f"no clip of split {split!r} has a keyword: the keyword error cannot be measured")


def describe(corpus: Corpus) -> dict[str, Any]:
    """Clips, hours, keywords and speakers of each split and in all; skipped clips; whether the speech is synthetic."""
    return {
        "splits": {split: _summary(corpus, corpus.rows(split)) for split in SPLITS},
        "total": _summary(corpus, corpus.rows()),
        "skipped": [{"id": clip, "reason": reason} for clip, reason in corpus.skipped],
        "synthetic": corpus.synthetic,
        "digest": corpus.digest,
    }


def check_share(skipped: Sequence[tuple[str, str]], total: int) -> None:
    """Raises ValueError when more than 1 % of `total` clips were skipped."""
    if len(skipped) > LARGEST_BAD_SHARE * total:
        first = "; ".join(f"{clip}: {reason}" for clip, reason in skipped[:3])
        raise ValueError(f"{len(skipped)} of {total} clips cannot be used, more than {LARGEST_BAD_SHARE:.0%}: {first}")


def _objects(columns: Iterable[pa.ChunkedArray]) -> NDArray[np.object_]:
    """Arrow columns end to end as one array of Python objects, None where null."""
    return np.array([value for column in columns for value in column.to_pylist()], object)


def _known(values: NDArray[np.object_]) -> NDArray[np.bool_]:
    return np.array([value is not None for value in values], bool)


def _check_skipped(skipped: Sequence[tuple[str, str]], total: int, indices: Mapping[Path, pa.Table]) -> None:
    try:
        check_share(skipped, total)
    except ValueError:
        for folder, index in indices.items():
            if index["reason"].null_count < len(
                index
            ):  # audio named by path may be repaired beside an unchanged file: read it again
                shutil.rmtree(folder, ignore_errors=True)
        raise


def _shifted(progress: Progress | None, done: int, total: int) -> Callable[[int], None]:
    """Progress of one file -> progress of all."""
    return lambda clips: progress(done + clips, total) if progress else None


def _summary(corpus: Corpus, rows: Rows) -> dict[str, Any]:
    return {
        "clips": len(rows),
        "hours": float(corpus.lengths[rows].sum() / SAMPLE_RATE / 3600),
        "keywords": len(set(corpus.keywords[rows]) - {None}),
        "speakers": len(set(corpus.speakers[rows]) - {None}),
    }
