"""A folder of audio files -> a corpus: the pattern of the paths says what is the keyword and what is the speaker."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trainers.speech.clips import Clip
from trainers.speech.corpora import Progress
from trainers.speech.files import composed, files_below
from trainers.speech.parquet import SILENCE, UNKNOWN
from trainers.speech.shards import Report, check_paths, join_shards, write_shards


@dataclass(frozen=True, kw_only=True)
class _File:
    name: str  # relative to the folder, with slashes
    keyword: str | None
    speaker: str | None
    group: str  # files of one group go to one split


def import_folder(
    folder: Path,
    pattern: str,
    out: Path,
    *,
    seed: int = 0,
    val_share: float = 0.15,
    test_share: float = 0.15,
    licence: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Writes the files of `folder` whose relative path matches `pattern` to the corpus `out`, as they are, not decoded.

    pattern: such as `{keyword}/{speaker}_*.wav`; `*` and `?` stand for characters other than a slash, `{keyword}` and `{speaker}`
    (as short as possible) for names (in Unicode's composed form), both optional; a field given twice is the same name twice.
    No speaker is in two splits (without `{speaker}`: no content); `split_groups` says how they are drawn. Of equal files the
    first stays. Any rate and number of channels will do; the report counts those that are converted when they are decoded. Links to
    files and folders are followed; what an operating system left there, and links that lead nowhere, are named in the report.
    licence: of the files, where it is known. An interrupted call goes on when it is repeated.
    Raises ValueError when the output exists, the folder is missing, the pattern has an unknown field or matches nothing, there
    is only one keyword, there are fewer than 3 speakers, or more than 1 % of the files are unreadable, empty or silent.
    """
    check_paths(folder, out)
    found = files_below(folder)
    files = list(_matching(folder, found.names, pattern))
    _check_matches(files, found.names, folder, pattern)
    split_of = split_groups({file.group for file in files}, seed, val_share, test_share)
    clips = (Clip(id=file.name, split=split_of[file.group], keyword=file.keyword, speaker=file.speaker) for file in files)
    notes = write_shards(folder, clips, out, official=False, progress=progress)
    unmatched = len(found.names) - len(files)
    strange = [f"files that do not match the pattern: {unmatched}"] if unmatched else []
    return join_shards(out, notes, [*strange, *found.remarks()], licence=licence)


def path_regex(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression over a whole relative path with slashes. Raises ValueError for an unknown field."""
    parts: list[str] = []
    seen: set[str] = set()
    for token in re.split(r"(\{[^{}]*\}|\*+|\?)", pattern):
        if token.startswith("*"):
            parts.append("[^/]*")
        elif token == "?":
            parts.append("[^/]")
        elif token in ("{keyword}", "{speaker}"):
            field = token[1:-1]
            parts.append(f"(?P={field})" if field in seen else f"(?P<{field}>[^/]+?)")
            seen.add(field)
        elif "{" in token or "}" in token:
            raise ValueError(f"pattern {pattern!r} has {token!r}; its fields are {{keyword}} and {{speaker}}")
        else:
            parts.append(re.escape(token))
    return re.compile("".join(parts), re.DOTALL)


def split_groups(groups: Iterable[str], seed: int, val_share: float, test_share: float) -> dict[str, str]:
    """The split of each group, drawn by a hash of seed and group: the shares, rounded, but at least one group each, and from
    six groups on two (an equal error rate needs two speakers). A share of 0 leaves the split empty.

    Raises ValueError for shares that leave nothing to train on, and for fewer than 3 groups.
    """
    order = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
    if not (val_share >= 0 and test_share >= 0 and val_share + test_share < 1):
        raise ValueError(f"shares are {val_share} (val) and {test_share} (test): from 0, and below 1 together")
    if len(order) < 3:
        raise ValueError(f"{len(order)} speakers (or different files) are too few for train, val and test: at least 3 are needed")
    least = 2 if len(order) >= 6 else 1
    val, test = (max(least, round(share * len(order))) if share else 0 for share in (val_share, test_share))
    if val + test >= len(order):
        raise ValueError(f"shares {val_share} (val) and {test_share} (test) of {len(order)} speakers leave none to train on")
    splits = ["val"] * val + ["test"] * test + ["train"] * (len(order) - val - test)
    return dict(zip(order, splits, strict=True))


def _matching(folder: Path, names: Iterable[str], pattern: str) -> Iterator[_File]:
    regex = path_regex(pattern)
    for name in names:
        if match := regex.fullmatch(name):
            if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
                raise ValueError(f"the name of {name!r} in {folder} is not UTF-8: rename the file")
            fields = {field: composed(text) for field, text in match.groupdict().items()}
            speaker = fields.get("speaker")
            group = speaker or _content(folder / name)
            yield _File(name=name, keyword=fields.get("keyword"), speaker=speaker, group=group)


def _content(path: Path) -> str:
    """What tells equal files; of one that cannot be read, which is a bad clip then, its name."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return path.name


def _check_matches(files: list[_File], names: list[str], folder: Path, pattern: str) -> None:
    if not files:
        example = f"for example {names[0]!r} does not match" if names else "the folder has no files"
        raise ValueError(f"pattern {pattern!r} matches nothing in {folder}: {example}")
    keywords = tuple(sorted({file.keyword for file in files if file.keyword is not None}))
    if len(keywords) == 1:
        raise ValueError(f"pattern {pattern!r} finds only the keyword {keywords[0]!r} in {folder}: at least 2 are needed")
    for keyword in keywords:
        if keyword.startswith("_") and keyword not in (UNKNOWN, SILENCE):
            raise ValueError(f"keyword {keyword!r} is not a word ({UNKNOWN} and {SILENCE} are classes): narrow {pattern!r}")
