"""Corpora from Parquet files, end to end, decoded into the cache once."""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainers.speech.corpora import Corpus, MappedSamples, Progress, check_share, known, short_names
from trainers.speech.decoding import INDEX_FILE, SAMPLES_FILE, content_hash, decoded
from trainers.speech.parquet import COLUMNS, check_columns, read_columns

SHARD = re.compile(r".+-\d{5}-of-\d{5}\.parquet")  # as Hugging Face datasets are written


def load_corpus(paths: Sequence[Path], cache: Path, progress: Progress | None = None) -> Corpus:
    """The files as one, end to end. Each is decoded once, into `cache`; later calls, from any process, only map it.

    Decoded audio is 16 kHz mono int16. A file is known by its content; audio that it refers to by path is taken to be unchanged.
    Speakers and clip ids belong to their corpus (`corpus_of`): speaker 19 of two corpora is two people, then named with the file's
    name; a keyword of the same spelling is one keyword.
    Raises ValueError for a file that is missing or not in the format, for no rows, duplicate ids in a corpus, an unknown split, a
    speaker of a corpus in two splits, and when more than 1 % of a corpus' clips are unreadable, empty or silent.
    """
    if not paths:
        raise ValueError("no corpus file is given")
    paths = [Path(path) for path in paths]
    tables, remarks = zip(*map(read_columns, paths), strict=True)
    columns = {name: _objects(table[name] for table in tables) for name in COLUMNS}
    names = list(dict.fromkeys(map(corpus_of, paths)))
    corpora = np.repeat([names.index(corpus_of(path)) for path in paths], [len(table) for table in tables])
    for number, corpus in enumerate(names):
        check_columns({name: column[corpora == number] for name, column in columns.items()}, corpus)
    hashes: list[str] = []
    folders: list[Path] = []
    done, total = 0, len(columns["id"])
    for path, table in zip(paths, tables, strict=True):
        hashes.append(content_hash(path, cache))
        folders.append(decoded(path, table, cache / hashes[-1][:16], _shifted(progress, done, total)))
        done += len(table)
    indices = [pq.read_table(folder / INDEX_FILE) for folder in folders]
    reasons = _objects(index["reason"] for index in indices)
    bad = known(reasons)
    skipped = tuple(zip(columns["id"][bad], reasons[bad], strict=True))
    for number in range(len(names)):
        own = corpora == number
        bad_clips = list(zip(columns["id"][own & bad], reasons[own & bad], strict=True))
        _check_skipped(bad_clips, int(own.sum()), dict(zip(folders, indices, strict=True)))
    return Corpus(
        samples=tuple(MappedSamples(folder / SAMPLES_FILE) for folder in folders),
        files=np.repeat(np.arange(len(indices)), [len(index) for index in indices])[~bad],
        starts=np.concatenate([index["start"].to_numpy() for index in indices])[~bad],
        lengths=np.concatenate([index["length"].to_numpy() for index in indices])[~bad],
        ids=columns["id"][~bad],
        splits=columns["split"][~bad],
        keywords=columns["keyword"][~bad],
        speakers=_people(columns["speaker_id"], corpora, names)[~bad],
        digest=hashlib.sha256("".join(hashes).encode()).hexdigest()[:16],
        synthetic=any((table.schema.metadata or {}).get(b"synthetic") == b"true" for table in tables),
        skipped=skipped,
        corpora=corpora[~bad] if len(names) > 1 else None,
        names=tuple(names),
        licences=tuple(_licence(tables, paths, name) for name in names),
        remarks=(*(remark for said in remarks for remark in said), *_shared_keywords(columns["keyword"], corpora)),
    )


def _licence(tables: Sequence[pa.Table], paths: Sequence[Path], corpus: str) -> str | None:
    """Of a corpus; what several files state, one after another."""
    metadata = [table.schema.metadata or {} for path, table in zip(paths, tables, strict=True) if corpus_of(path) == corpus]
    stated = dict.fromkeys(own[b"licence"].decode(errors="replace") for own in metadata if b"licence" in own)
    return "; ".join(stated) or None


def corpus_of(path: Path) -> str:
    """What a file's speakers and ids belong to: the file; of shards (`train-00000-of-00002.parquet`) the folder of them."""
    return str(path.parent if SHARD.fullmatch(path.name) else path)


def _people(speakers: NDArray[np.object_], corpora: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.object_]:
    """Speakers of several corpora with the name of theirs; those of one as they are."""
    if len(names) == 1:
        return speakers
    short = short_names(names)
    return np.array([None if s is None else f"{short[c]}:{s}" for s, c in zip(speakers, corpora, strict=True)], object)


def _shared_keywords(keywords: NDArray[np.object_], corpora: NDArray[np.int64]) -> list[str]:
    """One remark where corpora share keywords, which are then the same ones."""
    words = [set(keywords[corpora == number]) - {None} for number in np.unique(corpora)]
    both = sorted({word for i, own in enumerate(words) for other in words[i + 1 :] for word in own & other})
    shown = ", ".join(both[:5]) + (", ..." if len(both) > 5 else "")
    return [f"{len(both)} keywords are in two corpora and taken as the same: {shown}"] if both else []


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
