"""The study folder: what was asked (study.toml), what happened (candidates.jsonl, ledger.jsonl), what came out (front.json)."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nas.study.budget import Ledger, append_line, parse_budget, records, write_whole
from nas.study.candidates import Candidate
from nas.study.config import StudyConfig, check_name
from nas.study.lease import held
from search_spaces.kinds import text_of

STUDIES = Path("studies")
PLAN_FILE = "plan.json"
COMMANDS = ("search", "tune", "reproduce")  # that have a study folder
EXPERIMENT_FILE = "experiment.json"  # in the folder of `srlnas reproduce`
LINEAGE_FILE = "lineage.json"  # in the folder of `srlnas tune`


@dataclass(frozen=True, kw_only=True)
class Study:
    """A folder with its configuration. The files are the truth; of them the ledger's totals alone are kept in memory."""

    folder: Path
    config: StudyConfig

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "ledger.jsonl")

    def told(self, *, budget: str | None = None, workers: int | None = None, share: float | None = None) -> "Study":
        """The study with what it was told when it was begun again, written down: another total budget, another part of the cluster.

        Raises ValueError for a budget that does not parse, or is of another resource than what was spent.
        """
        if budget is not None and (wanted := parse_budget(budget).resource) != (known := parse_budget(self.config.budget).resource):
            raise ValueError(
                f"the study {self.config.name} spends {known.upper()} time, the budget {budget} is {wanted.upper()} time: give "
                f"{known} time, or begin a new study"
            )
        told = {"budget": budget, "workers": workers, "share": share}
        fields = {name: value for name, value in told.items() if value is not None}
        return self.changed(**fields) if fields else self

    def changed(self, **fields: Any) -> "Study":
        """The study with other values in its configuration, written down."""
        config = replace(self.config, **fields)
        config.write(self.folder / "study.toml")
        return Study(folder=self.folder, config=config)

    def record(self, candidate: Candidate) -> None:
        """Appends a change of state. The driver alone calls this."""
        append_line(self.folder / "candidates.jsonl", candidate.to_json())

    def candidates(self) -> list[Candidate]:
        """Every candidate in its last recorded state, in order of number. One left `running` was interrupted."""
        latest = {candidate.number: candidate for candidate in self.history()}
        return [latest[number] for number in sorted(latest)]

    def history(self) -> Iterator[Candidate]:
        """Every recorded change of state, in order: what each candidate scored on each of its rungs."""
        return records(self.folder / "candidates.jsonl", Candidate.from_dict)

    def weights_folder(self, name: str) -> Path:
        """Raises ValueError for a name that leaves the folder."""
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"{self.folder} names the student {name!r}: a name has no slashes")
        return self.folder / "students" / name

    @contextmanager
    def new_weights(self, name: str) -> Iterator[Path]:
        """An empty folder which, when the block ends, is that of a student, in the place of what was there."""
        place = self.weights_folder(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as unfinished:
            part = Path(unfinished) / name
            part.mkdir()
            yield part
            shutil.rmtree(place, ignore_errors=True)
            part.rename(place)

    def read_json(self, name: str) -> Any:
        """The file's content, None where there is none yet."""
        path = self.folder / name
        return json.loads(text_of(path)) if path.is_file() else None

    def write_json(self, name: str, content: Any) -> None:
        """Whole or not at all."""
        write_whole(self.folder / name, json.dumps(content, indent=2) + "\n")

    def locked(self) -> AbstractContextManager[None]:
        """For a block of work. Raises ValueError while another process runs this study, here or elsewhere."""
        return held(self.folder, self.config.name)


def create_study(config: StudyConfig, studies: Path = STUDIES, fill: Callable[[Study], object] = lambda study: None) -> Study:
    """fill: writes what a study begins with; its folder is there when all of it is. Raises ValueError when a study of that name
    exists."""
    folder = studies / config.name
    if folder.exists():
        raise ValueError(f"the study {config.name} exists; {_to_continue(folder)} or choose another --name")
    studies.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=studies, prefix=".") as unfinished:
        part = Path(unfinished) / config.name
        part.mkdir()
        fill(Study(folder=part, config=config))
        config.write(part / "study.toml")
        part.rename(folder)
    return Study(folder=folder, config=config)


def open_study(name: str | None = None, studies: Path = STUDIES, commands: Sequence[str] = ("search",)) -> Study:
    """The study of that name, without one the last that one of the commands began. Raises ValueError where there is none."""
    known = sorted(
        (path.parent for path in studies.glob("*/study.toml")), key=lambda folder: (folder / "study.toml").stat().st_mtime
    )
    if name is not None:
        check_name(name)
    wanted = [folder for folder in known if (folder.name == name if name else command_of(folder) in commands)]
    if not wanted:
        what = f"there is no study {name!r} in {studies}/" if name else f"there is no study in {studies}/"
        raise ValueError(f"{what}; known: {', '.join(folder.name for folder in known) or 'none, begin one with `srlnas search`'}")
    if command_of(wanted[-1]) not in commands:
        raise ValueError(f"the study {name} is not of `srlnas {commands[0]}`; {_to_continue(wanted[-1])}")
    return open_folder(wanted[-1])


def earlier_studies(config: StudyConfig, studies: Path = STUDIES) -> list[Study]:
    """Those that proposals learn of. Raises ValueError where one is missing, or searched another space."""
    found = [open_study(name, studies) for name in config.learn_from]
    for study in found:
        if study.config.space != config.space:
            raise ValueError(f"nothing is learnt from the study {study.config.name}: its space is {study.config.space}")
    return found


def command_of(folder: Path) -> str:
    if (folder / LINEAGE_FILE).is_file():
        return "tune"
    return "reproduce" if (folder / EXPERIMENT_FILE).is_file() else "search"


def _to_continue(folder: Path) -> str:
    return f"continue it with `srlnas {command_of(folder)} --resume {folder.name}`"


def open_folder(folder: Path) -> Study:
    return Study(folder=folder, config=StudyConfig.read(folder / "study.toml"))
