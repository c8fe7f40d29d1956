"""Speech corpora in memory: clips with their keywords and speakers, their audio mapped from files."""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.architecture import SAMPLE_RATE

SPLITS = ("train", "val", "test")
FULL_SCALE = 32_768
LARGEST_BAD_SHARE = 0.01
LONGEST_NAME = 60  # of a corpus where its scores are named
UNKNOWN_LICENCE = "not known"

Progress = Callable[[int, int], None]  # (clips done, clips in all)
Rows = NDArray[np.intp]
Samples = NDArray[np.int16]


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
    skipped: (id, reason) of each clip that could not be used. remarks: what is to be said of how the files were read.
    corpora: number of what each clip's id belongs to, None where all are of one corpus; names: of the corpora; licences: what their
    files state of the speech, None where they state nothing.
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
    corpora: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    licences: tuple[str | None, ...] = ()
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def clip(self, i: int, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Samples of clip `i` at 16 kHz, in [-1, 1): all, or those from `begin` up to `end`."""
        first, last = self.starts[i] + begin, self.starts[i] + (self.lengths[i] if end is None else end)
        samples: Samples = self.samples[self.files[i]].array[first:last]
        return np.divide(samples, FULL_SCALE, dtype=np.float32)

    def length(self, i: int) -> int:
        """Samples of clip `i`."""
        return int(self.lengths[i])

    def rows(self, split: str | None = None, *, with_keyword: bool = False, with_speaker: bool = False) -> Rows:
        """Row numbers, rising, of a split (None: all), optionally only those whose keyword or speaker is known."""
        assert split is None or split in SPLITS, split
        kept = np.ones(len(self), bool) if split is None else self.splits == split
        if with_keyword:
            kept = kept & known(self.keywords)
        if with_speaker:
            kept = kept & known(self.speakers)
        return np.flatnonzero(kept)

    @functools.cached_property
    def corpus_numbers(self) -> NDArray[np.int64]:
        """(clips,) of each clip's corpus, from 0: its place in `names`."""
        return np.zeros(len(self), np.int64) if self.corpora is None else self.corpora

    @functools.cached_property
    def short_names(self) -> tuple[str, ...]:
        """Of each corpus, for reports."""
        return short_names(self.names)

    @functools.cached_property
    def keyword_labels(self) -> tuple[str, ...]:
        """The keywords of the train split, sorted. Raises ValueError when another split has a keyword that train has not."""
        labels = set(self.keywords[self.rows("train", with_keyword=True)])
        strange = sorted(set(self.keywords[self.rows(with_keyword=True)]) - labels)
        if strange:
            raise ValueError(f"keyword {strange[0]!r} is in val or test but not in train: add training clips or make it null")
        return tuple(sorted(labels))


def check_trainable(corpus: Corpus) -> None:
    """Raises ValueError when the corpus cannot train, validate and test keywords and speakers."""
    for split in SPLITS:
        if not len(corpus.rows(split)):
            raise ValueError(f"the corpus has no clip in split {split!r}: a search needs {', '.join(SPLITS)}")
        speakers = sorted(set(corpus.speakers[corpus.rows(split, with_speaker=True)]))
        if len(speakers) < 2:
            raise ValueError(f"split {split!r} has {len(speakers)} speakers {speakers}: at least 2 are needed")
    rows = corpus.rows("train", with_speaker=True)
    if not any(len(set(corpus.speakers[rows[corpus.corpus_numbers[rows] == number]])) > 1 for number in range(len(corpus.names))):
        raise ValueError("no corpus has 2 speakers in split 'train': what tells voices apart would be the corpus")
    labels = corpus.keyword_labels
    if len(labels) < 2:
        raise ValueError(f"split 'train' has {len(labels)} keywords {list(labels)}: at least 2 are needed")
    for split in ("val", "test"):
        if not len(corpus.rows(split, with_keyword=True)):
            raise ValueError(f"no clip of split {split!r} has a keyword: the keyword error cannot be measured")


def describe(corpus: Corpus) -> dict[str, Any]:
    """Clips, hours, keywords and speakers of each split, of each corpus where there are several, and in all; skipped clips;
    whether the speech is synthetic."""
    return {
        "splits": {split: _summary(corpus, corpus.rows(split)) for split in SPLITS},
        **({"corpora": summaries(corpus)} if len(corpus.names) > 1 else {}),
        "total": _summary(corpus, corpus.rows()),
        "skipped": [{"id": clip, "reason": reason} for clip, reason in corpus.skipped],
        "remarks": list(corpus.remarks),
        "licences": {name: licence or UNKNOWN_LICENCE for name, licence in stated_licences(corpus).items()},
        "synthetic": corpus.synthetic,
        "digest": corpus.digest,
    }


def stated_licences(corpus: Corpus) -> dict[str, str | None]:
    """Of each corpus, None where its files state none."""
    return dict(zip(corpus.short_names, corpus.licences or [None] * len(corpus.names), strict=True))


def summaries(corpus: Corpus) -> dict[str, dict[str, Any]]:
    """Clips, hours, keywords and speakers of each corpus."""
    return {name: _summary(corpus, np.flatnonzero(corpus.corpus_numbers == i)) for i, name in enumerate(corpus.short_names)}


def check_share(skipped: Sequence[tuple[str, str]], total: int) -> None:
    """Raises ValueError when more than 1 % of `total` clips were skipped."""
    if len(skipped) > LARGEST_BAD_SHARE * total:
        first = "; ".join(f"{clip}: {reason}" for clip, reason in skipped[:3])
        raise ValueError(f"{len(skipped)} of {total} clips cannot be used, more than {LARGEST_BAD_SHARE:.0%}: {first}")


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """File names without their ending, with as many folders before them as tell them apart. MLflow takes them in a metric's name:
    letters, digits, `_`, `-` and `.`; what else there is becomes `_`."""
    paths = [Path(name).absolute() for name in names]
    parts = [(*path.parent.parts, path.name.removesuffix(".parquet") or "corpus") for path in paths]
    for count in range(1, max(map(len, parts), default=0) + 1):
        short = tuple(re.sub(r"[^\w.-]", "_", "-".join(part[-count:]))[-LONGEST_NAME:] for part in parts)
        if len(set(short)) == len(short):
            return short
    return tuple(f"corpus-{number}" for number, _ in enumerate(names, 1))


def known(values: NDArray[np.object_]) -> NDArray[np.bool_]:
    """(clips,): whether a value is there, not None."""
    return np.array([value is not None for value in values], bool)


def _summary(corpus: Corpus, rows: Rows) -> dict[str, Any]:
    return {
        "clips": len(rows),
        "hours": float(corpus.lengths[rows].sum() / SAMPLE_RATE / 3600),
        "keywords": len(set(corpus.keywords[rows]) - {None}),
        "speakers": len(set(corpus.speakers[rows]) - {None}),
    }
