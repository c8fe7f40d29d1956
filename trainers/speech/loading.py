"""Corpora from Parquet files, end to end, decoded into the cache once."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainers.speech.corpora import Corpus, MappedSamples, Progress, check_share, known
from trainers.speech.decoding import INDEX_FILE, SAMPLES_FILE, content_hash, decoded
from trainers.speech.parquet import COLUMNS, check_columns, read_columns


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
    bad = known(reasons)
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


def _objects(columns: Iterable[pa.ChunkedArray]) -> NDArray[np.object_]:
    """Arrow columns end to end as one array of Python objects, None where null."""
    return np.array([value for column in columns for value in column.to_pylist()], object)


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
