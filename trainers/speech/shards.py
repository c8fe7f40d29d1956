"""Audio files -> a corpus, some clips at a time, so that an interrupted import goes on where it was.

Beside the output `OUT` a folder `.OUT-part` holds `plan.json`, the hash of what is to be imported, and a whole Parquet file for
every SHARD_CLIPS clips done, with what was left out in its footer. At the end the files are joined and the folder goes.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.architecture import SAMPLE_RATE
from trainers.speech.clips import Audio, Clip, read_clips
from trainers.speech.corpora import Progress, check_share
from trainers.speech.decoding import BadAudio
from trainers.speech.parquet import SCHEMA, check_columns, corpus_writer, open_parquet, read_columns, tables

SHARD_CLIPS = 1_000
ORDER = ("test", "val", "train")  # of two equal files the first stays: what is scored keeps its clips
NOTES = b"notes"  # key in a shard's footer


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What is to be said of the clips read so far.

    skipped, duplicates: (id, reason). converted: clips by form (`44100 Hz, 2 channels`) that are resampled or mixed down
    whenever they are decoded. digests: hash of a file -> id of its clip.
    """

    skipped: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)
    digests: dict[str, str] = field(default_factory=dict)

    def add(self, other: "Notes") -> None:
        self.skipped.extend(other.skipped)
        self.duplicates.extend(other.duplicates)
        self.converted.update(other.converted)
        self.digests.update(other.digests)

    def left_out(self) -> set[str]:
        return {clip for clip, _ in (*self.skipped, *self.duplicates)}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was imported: clips by split, keywords, speakers, what was left out or is converted (see Notes), other remarks."""

    clips: Mapping[str, int]
    keywords: tuple[str, ...]
    speakers: int
    skipped: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, str], ...]
    converted: Mapping[str, int]
    remarks: tuple[str, ...]


def check_paths(folder: Path, *outputs: Path) -> None:
    """Raises ValueError when an output exists or is given twice, or the folder does not exist."""
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"{outputs[0]} is given twice: each output needs a name of its own")
    for out in outputs:
        if out.exists():
            raise ValueError(f"{out} exists: remove it or choose another name")
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")


def write_shards(root: Path, clips: Iterable[Clip], out: Path, *, official: bool, progress: Progress | None = None) -> Notes:
    """Reads the clips into shards beside `out`; what an earlier call with the same clips has done is not done again.

    Encoded audio is kept as it is. A file that equals an earlier one (test before val before train) is left out.
    official: every file has to be 16 kHz mono; another is a bad file, not one to convert.
    Raises ValueError for ids, splits or speakers that make no corpus, for a disk that is too small, and as soon as more than 1 %
    of all clips are unreadable, empty or silent; the shards are then removed, because mended files make another plan.
    """
    plan = sorted(clips, key=lambda clip: ORDER.index(clip.split))
    check_columns(_columns(plan), str(out))
    folder = part_folder(out)
    _open_plan(folder, root, plan, official)
    split_of = {clip.id: clip.split for clip in plan}
    notes = Notes()
    for start in range(0, len(plan), SHARD_CLIPS):
        path, shard = folder / f"{start:09}.parquet", plan[start : start + SHARD_CLIPS]
        if not _is_whole(path):
            audio = _ticking(read_clips(root, shard, official), progress, start, len(plan))
            _write_shard(path, audio, split_of, notes.digests)
        elif progress:
            progress(start + len(shard), len(plan))
        notes.add(_notes(path))
        try:
            check_share(notes.skipped, len(plan))
        except ValueError:
            shutil.rmtree(folder)
            raise
    return notes


def join_shards(out: Path, notes: Notes, remarks: Sequence[str] = (), *, licence: str | None) -> Report:
    """Joins what `write_shards` left, row group by row group, to `out`, and removes the shards. licence: as of `corpus_writer`."""
    folder = part_folder(out)
    with corpus_writer(out, licence=licence) as writer:
        for path in sorted(folder.glob("*.parquet")):
            with open_parquet(path, SCHEMA.names) as shard:
                for group in range(shard.num_row_groups):
                    writer.write_table(shard.read_row_group(group))
    shutil.rmtree(folder)
    columns = read_columns(out)[0].to_pydict()
    return Report(
        clips=Counter(columns["split"]),
        keywords=tuple(sorted(set(columns["keyword"]) - {None})),
        speakers=len(set(columns["speaker_id"]) - {None}),
        skipped=tuple(notes.skipped),
        duplicates=tuple(notes.duplicates),
        converted=notes.converted,
        remarks=tuple(remarks),
    )


def part_folder(out: Path) -> Path:
    """Where the shards of an output are."""
    return out.parent / f".{out.name}-part"


def _columns(clips: Sequence[Clip]) -> dict[str, Any]:
    names = {"id": "id", "split": "split", "speaker_id": "speaker"}
    return {column: np.array([getattr(clip, name) for clip in clips], object) for column, name in names.items()}


def _open_plan(folder: Path, root: Path, clips: Sequence[Clip], official: bool) -> None:
    """Keeps the shards of the same plan (clips and the size and time of their files), removes those of another."""
    digest = hashlib.sha256(repr((root.resolve(), official, SHARD_CLIPS)).encode())
    size = 0
    for clip in clips:
        status = (root / (clip.piece.recording if clip.piece else clip.id)).stat()
        size += 2 * SAMPLE_RATE if clip.piece else status.st_size
        digest.update(repr((clip, status.st_size, status.st_mtime_ns)).encode())
    plan, content = folder / "plan.json", json.dumps({"digest": digest.hexdigest()})
    if not (plan.is_file() and plan.read_text() == content):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        plan.write_text(content)
    shards = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    needed, free = 2 * size - shards, shutil.disk_usage(folder).free  # the shards, and then what they are joined to
    if needed > free:
        if not shards:
            shutil.rmtree(folder)
        raise ValueError(
            f"the import needs {needed / 1e9:.1f} GB in {folder.parent}, half of it to the end; {free / 1e9:.1f} are free"
        )


def _is_whole(shard: Path) -> bool:
    try:
        _notes(shard)
    except (ValueError, OSError):
        return False
    return True


def _notes(path: Path) -> Notes:
    with open_parquet(path, SCHEMA.names) as shard:
        content = json.loads((shard.metadata.metadata or {}).get(NOTES, b""))
    pairs = {name: [(clip, reason) for clip, reason in content[name]] for name in ("skipped", "duplicates")}
    return Notes(converted=Counter(content["converted"]), digests=content["digests"], **pairs)


def _write_shard(
    path: Path, audio: Iterable[tuple[Clip, Audio | BadAudio]], split_of: Mapping[str, str], digests: Mapping[str, str]
) -> None:
    """split_of: of every clip of the plan. digests: of the earlier shards."""
    notes = Notes()
    with corpus_writer(path) as writer:
        for table in tables(_rows(audio, split_of, digests, notes)):
            writer.write_table(table)
        writer.add_key_value_metadata({NOTES: json.dumps(vars(notes))})


def _rows(
    audio: Iterable[tuple[Clip, Audio | BadAudio]], split_of: Mapping[str, str], digests: Mapping[str, str], notes: Notes
) -> Iterator[Mapping[str, Any]]:
    """Rows of the usable clips; `notes` gets the rest."""
    for clip, found in audio:
        if isinstance(found, BadAudio):
            notes.skipped.append((clip.id, str(found)))
            continue
        if found.digest:
            if first := digests.get(found.digest) or notes.digests.get(found.digest):
                where = "" if split_of[first] == clip.split else f", which is in {split_of[first]}"
                notes.duplicates.append((clip.id, f"the same file as {first}{where}"))
                continue
            notes.digests[found.digest] = clip.id
        if found.form:
            notes.converted[found.form] += 1
        yield {
            "id": clip.id,
            "split": clip.split,
            "keyword": clip.keyword,
            "speaker_id": clip.speaker,
            "duration_s": found.seconds,
            "audio": {"bytes": found.data, "path": clip.id},
        }


def _ticking(
    audio: Iterable[tuple[Clip, Audio | BadAudio]], progress: Progress | None, done: int, total: int
) -> Iterator[tuple[Clip, Audio | BadAudio]]:
    for count, found in enumerate(audio, done + 1):
        yield found
        if progress:
            progress(count, total)
