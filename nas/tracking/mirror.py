"""MLflow mirror of a study: one experiment a study, one parent run a search, one child run a candidate (one level).

The study folder is the truth and MLflow can be rebuilt from it: every function here is keyed and may be called again with
the same arguments. Only the driver writes (a sqlite store has one writer). MLflow is imported late, because it takes a second.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nas.study.candidates import Candidate
from nas.study.config import check_name
from nas.tracking.connection import SERVERS, artifacts_folder, connect, default_tracking_uri, scheme_of
from nas.tracking.pages import experiment_tags
from nas.tracking.runs import Status, children_of, flattened, own_tags, text_of, write_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Kind = Literal["search", "finalist", "reference", "reproduction"]
NOTE = "mlflow.note.content"  # MLflow shows it as the description
STATUS: Mapping[str, Status] = {
    "running": "RUNNING",
    "complete": "FINISHED",
    "stopped": "KILLED",
    "refused": "KILLED",
    "failed": "FAILED",
}


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """An open study in MLflow. `run_id` is the parent run of the search; `children` maps `kind/name` to run ids."""

    uri: str
    experiment_id: str
    run_id: str
    client: "MlflowClient"
    children: dict[str, str]

    def log_candidate(self, candidate: Candidate) -> str:
        """The candidate's child run, created or brought up to date; metrics have the rung as their step.

        A state of an earlier rung than the one that MLflow has is left out, so that a study can be replayed line by line.
        """
        name = f"{candidate.number}-{candidate.architecture.key}"  # the key: a new study under an old name has other candidates
        run = self._child("search", name, f"candidate {candidate.number}")
        if int(run.data.tags.get("srlnas.rung", 0)) > candidate.rung:
            return str(run.info.run_id)
        tags = {"candidate": candidate.number, "key": candidate.architecture.key, "state": candidate.state, "rung": candidate.rung}
        tags |= {"latency_kind": candidate.latency_kind}
        notes = {"error": candidate.error or "", "weights": candidate.weights or ""}
        write_run(
            self.client,
            run,
            params=asdict(candidate.architecture),
            metrics={**candidate.scores, "seconds": candidate.seconds},
            tags=own_tags({**tags, **notes}),
            step=candidate.rung,
            status=STATUS[candidate.state],
        )
        return str(run.info.run_id)

    def log_run(
        self,
        name: str,
        *,
        kind: Kind,
        key: str | None = None,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, object] | None = None,
        status: Status = "FINISHED",
        step: int = 0,
    ) -> str:
        """The child run `name` of a kind (a finalist, a reference), created or brought up to date. Returns its run id.

        key: what it is found by where that is more than its name.

        Raises ValueError where a parameter has another value than MLflow has: parameters of a run never change.
        """
        run = self._child(kind, key or name, name)
        write_run(self.client, run, params=params, metrics=metrics, tags=own_tags(tags or {}), step=step, status=status)
        return str(run.info.run_id)

    def log_curves(self, values: Sequence[tuple[int, Mapping[str, float]]], *, params: Mapping[str, object] | None = None) -> None:
        """On the parent run, in one call: the values of several steps, and parameters that it lacks."""
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for step, found in values for name, value in found.items()]
        known = self.client.get_run(self.run_id).data.params if params else {}
        new = [Param(name, value) for name, value in flattened(params or {}).items() if name not in known]
        self.client.log_batch(self.run_id, metrics, new)

    def log_front(
        self,
        front: Mapping[str, Any],
        *,
        page: Path | None = None,
        plots: Sequence[Path] = (),
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """On the parent run: `front.json`, the same as a table (`front_table.json`), as a page, plot files, metrics such as the
        hypervolume.

        The table is what `mlflow.log_table` would write, which cannot be used here: called again, it appends.
        """
        run = self.client.get_run(self.run_id)
        self.client.log_dict(self.run_id, dict(front), "front.json")
        self.client.log_dict(self.run_id, _table(front.get("members", ())), "front_table.json")
        if page:
            self.client.log_artifact(self.run_id, str(page))
        for plot in plots:
            self.client.log_artifact(self.run_id, str(plot), "plots")
        table = json.dumps([{"path": "front_table.json", "type": "table"}])
        write_run(self.client, run, metrics=metrics, tags={"mlflow.loggedArtifacts": table})

    def describe(self, text: str) -> None:
        """In Markdown, of the experiment and of the parent run."""
        self.client.set_experiment_tag(self.experiment_id, NOTE, text)
        self.client.set_tag(self.run_id, NOTE, text)

    def _child(self, kind: Kind, name: str, title: str) -> "Run":
        key = f"{kind}/{name}"
        if key in self.children:
            return self.client.get_run(self.children[key])
        tags = {"mlflow.parentRunId": self.run_id, "srlnas.kind": kind, "srlnas.name": name}
        run = self.client.create_run(self.experiment_id, run_name=title, tags=tags)
        self.children[key] = run.info.run_id
        return run

    def finish(self, status: Status = "FINISHED") -> None:
        """Ends the parent run; `open_tracking` sets it running again."""
        self.client.set_terminated(self.run_id, status)


def open_tracking(
    uri: str,
    study_name: str,
    *,
    search: str | None = None,
    description: str = "",
    tags: Mapping[str, object] | None = None,
) -> Tracking:
    """Opens a study's experiment and the parent run of its search, both created where MLflow lacks them; the run is set running.

    uri: `http(s)://...` of a server, or a database that MLflow opens itself (`sqlite:///...`, `postgresql://...`).
    search: name of the search where a study has several; the default is the study's name.
    Raises ValueError, within about 10 seconds, for a name that MLflow cannot take and where no MLflow answers at `uri`.
    """
    search = search or study_name
    check_name(study_name)
    check_name(search)
    client = connect(uri)
    experiment_id = _experiment(client, uri, study_name, description)
    query = f"tags.`srlnas.kind` = 'study' AND tags.`srlnas.search` = '{search}'"
    found = client.search_runs([experiment_id], query, max_results=1)
    fixed = {"srlnas.kind": "study", "srlnas.study": study_name, "srlnas.search": search}
    run = found[0] if found else client.create_run(experiment_id, run_name=search, tags=fixed)
    run_id = run.info.run_id
    tracking = Tracking(
        uri=uri, experiment_id=experiment_id, run_id=run_id, client=client, children=children_of(client, experiment_id, run_id)
    )
    noted = {} if NOTE in run.data.tags else {NOTE: description}
    write_run(client, run, tags={**noted, **own_tags(tags or {})}, status="RUNNING")
    return tracking


@contextmanager
def tracked(uri: str | None, study_name: str, **about: Any) -> Iterator[Tracking]:
    """As `open_tracking`, for a block of work; the run's status says at the end how it went. uri: None is the default's."""
    tracking = open_tracking(uri or default_tracking_uri(), study_name, **about)
    status: Status = "FAILED"
    try:
        yield tracking
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        with suppress(Exception):  # a server that went away must not hide what ended the work
            tracking.finish(status)


def _experiment(client: "MlflowClient", uri: str, name: str, description: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        place = None if scheme_of(uri) in SERVERS else (artifacts_folder(uri) / name).as_uri()
        tags = {NOTE: description, **experiment_tags()}
        return str(client.create_experiment(name, artifact_location=place, tags=tags))
    if found.lifecycle_stage == "deleted":
        raise ValueError(
            f"experiment {name!r} was deleted in MLflow: `mlflow experiments restore -x {found.experiment_id}` brings it back, "
            "or give the study another name"
        )
    for name, value in experiment_tags().items():
        if found.tags.get(name) != value:
            client.set_experiment_tag(found.experiment_id, name, value)
    return str(found.experiment_id)


def _table(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows for MLflow's table view (pandas' `split` layout): a member's fields, with architecture and scores spread out."""
    rows = []
    for member in members:
        row: dict[str, Any] = {}
        for name, value in member.items():
            if name != "by_corpus":  # the scores have it too
                row.update(value if isinstance(value, Mapping) else {name: value})
        rows.append({name: text_of(value) if isinstance(value, list | tuple) else value for name, value in row.items()})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}
