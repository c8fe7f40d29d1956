"""Training batches that several processes of a node hear, made once: Arrow files, mapped into memory."""

import fcntl
import functools
import os
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from trainers.learning.streams import Batch, Stream

CHUNK = 32  # batches of a shared file: 16 MB with 16 windows of a second


def shared(folder: Path, most: int, name: str, stream: Stream) -> Stream:
    """The same batches, those of the first `most` steps made once for all processes of a node: files of Arrow record batches below
    `folder`, mapped into memory."""
    folder = folder / name

    @functools.lru_cache(maxsize=2)
    def chunk(number: int) -> pa.RecordBatchFileReader:
        path = folder / f"{number}.arrow"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / ".lock").open("w") as lock:
                with suppress(OSError):  # a file system without locks: several make it, the last one's stays
                    fcntl.flock(lock, fcntl.LOCK_EX)  # others wait for the file instead of making it too
                if not path.is_file():
                    _write(path, [stream(number * CHUNK + i) for i in range(CHUNK)])
        return pa.ipc.open_file(pa.memory_map(str(path)))

    def of(step: int) -> Batch:
        if step >= most:
            return stream(step)
        labels, *lists = chunk(step // CHUNK).get_batch(step % CHUNK).columns
        audio, *answers = (column.flatten().to_numpy().reshape(len(labels), -1) for column in lists)
        return Batch(audio=audio, labels=labels.to_numpy(), answers=answers[0] if answers else None)

    return of


def _write(path: Path, batches: list[Batch]) -> None:
    """Renamed into place when complete."""
    unfinished = path.with_name(f"{path.stem}.{os.uname().nodename}.{os.getpid()}.part")  # without locks several may write it
    records = [_record(batch) for batch in batches]
    with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_file(file, records[0].schema) as writer:
        for record in records:
            writer.write_batch(record)
    unfinished.replace(path)


def _record(batch: Batch) -> pa.RecordBatch:
    lists = [("audio", batch.audio)] + ([] if batch.answers is None else [("answers", batch.answers)])
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1]) for _, numbers in lists]
    return pa.record_batch([pa.array(batch.labels), *columns], names=["labels", *(name for name, _ in lists)])
