"""The file format of a corpus: Parquet, one row a clip.

Columns: id, split (train | val | test), keyword (null: unlabelled; `_unknown_` and `_silence_` are classes), speaker_id (null:
unknown), duration_s, audio (struct<bytes, path>: an encoded file, or its path relative to the Parquet file's folder). The file's
metadata may have `synthetic` and `licence`.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainers.speech.columns import text_columns
from trainers.speech.corpora import SPLITS

SILENCE = "_silence_"
UNKNOWN = "_unknown_"
ROW_GROUP_BYTES = 32 << 20
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


def open_parquet(path: Path, required: Iterable[str]) -> pq.ParquetFile:
    """Raises ValueError when the file is missing, is damaged, is not Parquet or lacks a required column."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        with readable(path):
            # without pre-buffering a file that is one huge row group is read page by page
            file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except pa.ArrowException:
        raise ValueError(f"{path} is not a Parquet file") from None
    missing = [name for name in required if name not in file.schema_arrow.names]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}")
    return file


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Around what reads of an opened file: raises ValueError where its bytes are damaged, which pyarrow tells as an OSError."""
    try:
        yield
    except (OSError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged, or cannot be read: {said}") from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, in the same file system; the file is at `path` when the block ends, and not at all when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-", ignore_cleanup_errors=True) as folder:
        part = Path(folder) / path.name
        yield part
        os.replace(part, path)


@contextmanager
def corpus_writer(path: Path, synthetic: bool = False, licence: str | None = None) -> Iterator[pq.ParquetWriter]:
    """Takes tables of the format, a row group each; `path` is written whole or not at all. licence: of the speech, if known."""
    schema = SCHEMA.with_metadata({"synthetic": "true" if synthetic else "false", **({"licence": licence} if licence else {})})
    labels = ["split", "keyword", "speaker_id"]  # a dictionary of encoded audio would only cost memory
    with whole_file(path) as part, pq.ParquetWriter(part, schema, compression="none", use_dictionary=labels) as writer:
        yield writer


def write_corpus(path: Path, rows: Iterable[Mapping[str, Any]], synthetic: bool = False) -> int:
    """Streams rows (the columns of the format) to a Parquet file, whole or not at all; returns how many.

    Raises ValueError when there are no rows.
    """
    count = 0
    with corpus_writer(path, synthetic) as writer:
        for table in tables(rows):
            writer.write_table(table)
            count += len(table)
        if not count:
            raise ValueError(f"no rows to write to {path}")
    return count


def read_columns(path: Path) -> tuple[pa.Table, list[str]]:
    """The small columns of a file as strings, and what is to be said of them; the audio stays on disk."""
    with open_parquet(path, SCHEMA.names) as file:
        audio = file.schema_arrow.field("audio").type
        if not pa.types.is_struct(audio) or not {"bytes", "path"} <= {field.name for field in audio}:
            raise ValueError(f"{path}: column audio is {audio}, not struct<bytes: binary, path: string>")
        if not file.metadata.num_rows:
            raise ValueError(f"{path} has no rows")
        with readable(path):
            return text_columns(path, file.read(list(COLUMNS)), COLUMNS)


def check_columns(columns: Mapping[str, NDArray[np.object_]], of: str) -> None:
    """Of one corpus, which `of` names. Raises ValueError for a repeated id, an unknown split and a speaker in two splits."""
    repeated = [clip for clip, count in Counter(columns["id"]).items() if count > 1 or clip is None]
    if repeated:
        raise ValueError(f"{of}: id {repeated[0]!r} is null or given to several clips: ids are unique in a corpus")
    strange = set(columns["split"]) - set(SPLITS)
    if strange:
        raise ValueError(f"{of}: split {sorted(strange, key=str)[0]!r} is not one of {', '.join(SPLITS)}")
    seen: dict[str, str] = {}
    for speaker, split in zip(columns["speaker_id"], columns["split"], strict=True):
        if speaker is not None and seen.setdefault(speaker, split) != split:
            raise ValueError(
                f"{of}: speaker {speaker!r} is in the splits {seen[speaker]} and {split}: splits must not share speakers"
            )


def tables(rows: Iterable[Mapping[str, Any]]) -> Iterator[pa.Table]:
    """Rows as tables of about 32 MiB of audio each."""
    group: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["audio"]["bytes"] or b"")
        if size >= ROW_GROUP_BYTES or len(group) >= 10_000:
            yield pa.Table.from_pylist(group, SCHEMA)
            group, size = [], 0
    if group:
        yield pa.Table.from_pylist(group, SCHEMA)
