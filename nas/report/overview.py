"""All studies of a folder: what runs, what was spent, what came out, and what can be freed."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nas.report.front import FRONT_FILE, search_front
from nas.stages.finals import read_finals, unbeaten
from nas.study.budget import in_words, parse_budget
from nas.study.folder import STUDIES, Study, command_of, open_folder
from nas.study.lease import is_running
from nas.tracking.outage import first_line
from nas.worker.unfinished import FOLDERS

ENDED, TO_CONTINUE = "ended", "to continue"
SIGNS = "begun"  # of life: a study that has ended needs none


@dataclass(frozen=True, kw_only=True)
class Row:
    """state: `running` with the driver, `ended`, or `to continue`. spent, left: in words. disk: bytes."""

    name: str
    command: str
    state: str
    spent: str
    left: str
    front: str
    disk: int


def overview(studies: Path = STUDIES) -> Iterator[Row]:
    """The latest begun last; a line for one that cannot be read."""
    files = sorted(studies.glob("*/study.toml"), key=lambda file: file.stat().st_mtime)
    for folder in (file.parent for file in files):
        try:
            yield row_of(open_folder(folder))
        except (ValueError, TypeError, KeyError, OSError) as error:
            unreadable = f"unreadable: {first_line(error)}"
            yield Row(name=folder.name, command="?", state=unreadable, spent="", left="", front="", disk=size(folder))


def row_of(study: Study) -> Row:
    budget, spent, command = parse_budget(study.config.budget), study.ledger.spent, command_of(study.folder)
    is_budgeted = command != "reproduce"  # which ends when its rows have
    return Row(
        name=study.config.name,
        command=command,
        state=state_of(study),
        spent=f"{in_words(spent)} {budget.resource.upper()}",
        left=in_words(max(0.0, budget.seconds - spent)) if is_budgeted else "",
        front=_front(study),
        disk=size(study.folder),
    )


def state_of(study: Study) -> str:
    if (driver := is_running(study.folder)) is not None:
        return f"running, {driver}"
    if any((study.folder / folder).exists() for folder in FOLDERS):  # it was continued, and interrupted
        return TO_CONTINUE
    if command_of(study.folder) == "reproduce":
        table = study.read_json("paper.json")
        return ENDED if table and not table["failed"] else TO_CONTINUE
    front = study.read_json(FRONT_FILE)
    return ENDED if front and front["stage"] == "final" else TO_CONTINUE


def _front(study: Study) -> str:
    """What it has so far."""
    front, candidates = study.read_json(FRONT_FILE), study.candidates()
    trained = sum(candidate.state == "complete" for candidate in candidates)
    if front and front["stage"] == "final":
        return f"{len(front['members'])} members"
    return f"{len(search_front(candidates))} of {trained} candidates trained" if candidates else ""


def prune(study: Study) -> Iterator[tuple[str, int]]:
    """Takes away what a study that has ended no longer needs; what it was, and bytes. A later, larger budget needs none of it: what
    is beaten once stays beaten. Raises ValueError where the study has not ended."""
    if (state := state_of(study)) != ENDED:
        raise ValueError(f"the study {study.config.name} has not ended ({state}): nothing is taken away")
    for what, folders in _spare(study).items():
        there = [folder for folder in folders if folder.is_dir()]
        if not there:
            continue
        freed = sum(map(size, there))
        for folder in there:
            shutil.rmtree(folder)
        yield f"{what} ({len(there)})" if len(there) > 1 else what, freed


def _spare(study: Study) -> dict[str, list[Path]]:
    return {
        "weights of beaten candidates": [study.weights_folder(f"candidate-{number}") for number in _beaten(study)],
        "signs of life": [study.folder / SIGNS],
    }


def _beaten(study: Study) -> list[int]:
    """Numbers of complete candidates that another one beats on validation, that could be no member either if the finals came out
    as they did, and that no final is a copy of."""
    complete, finals = [candidate for candidate in study.candidates() if candidate.state == "complete"], read_finals(study)
    kept = {candidate.number for candidate in (*unbeaten(complete, []), *unbeaten(complete, finals))}
    sources = {final.source for final in finals}
    return [c.number for c in complete if c.number not in kept and f"candidate-{c.number}" not in sources]


def size(folder: Path) -> int:
    """Bytes on disk; files that go away meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except OSError:
            continue
    return total
