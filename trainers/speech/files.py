"""Files below a folder that an import reads: links are followed, what an operating system leaves behind is passed over."""

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LITTER = ("._", ".DS_Store", "Thumbs.db", "desktop.ini")  # `._NAME`: what macOS writes beside NAME on foreign disks


@dataclass(frozen=True)
class Found:
    """names: relative to the folder, with slashes, sorted. litter: files of an operating system. dangling: links to nothing."""

    names: list[str] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)

    def remarks(self) -> list[str]:
        """What was passed over, for the report."""
        said = []
        if self.litter:
            said.append(f"files that an operating system left there: {len(self.litter)}, as {self.litter[0]}")
        if self.dangling:
            said.append(f"links that lead nowhere: {len(self.dangling)}, as {self.dangling[0]}")
        return said


def composed(text: str) -> str:
    """In Unicode's form NFC: macOS writes names of files in another one."""
    return unicodedata.normalize("NFC", text)


def is_litter(name: str) -> bool:
    return name.startswith(LITTER[0]) or name in LITTER


def files_below(folder: Path) -> Found:
    """Every file; those of linked folders under the link's name. A link to a folder that it lies in is not followed again."""
    found = Found()
    for name in sorted(_walk(folder, folder, (os.path.realpath(folder),))):
        path = folder / name
        kind = found.litter if is_litter(path.name) else found.names if path.is_file() else found.dangling
        kind.append(name)
    return found


def _walk(root: Path, folder: Path, above: tuple[str, ...]) -> Iterator[str]:
    for entry in os.scandir(folder):
        if not entry.is_dir():
            yield Path(entry.path).relative_to(root).as_posix()
        elif (real := os.path.realpath(entry.path)) not in above:
            yield from _walk(root, Path(entry.path), (*above, real))


def lines_of(path: Path) -> list[str]:
    """Of a list that an editor may have left a byte order mark, other line ends or blank lines in."""
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
