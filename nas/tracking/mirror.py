"""MLflow mirror of a study: one experiment a study, one parent run a search, one child run a candidate (one level).

The study folder is the truth and MLflow can be rebuilt from it: every function here is keyed and may be called again with
the same arguments. Only the driver writes (a sqlite store has one writer). MLflow is imported late, because it takes a second.
"""

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nas.study.candidates import Candidate
from nas.study.config import check_name
from nas.tracking.connection import SERVERS, artifacts_folder, connect, scheme_of
from nas.tracking.registry import models_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

Kind = Literal["search", "finalist", "reference", "reproduction"]
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
STATUS: Mapping[str, Status] = {
    "running": "RUNNING",
    "complete": "FINISHED",
    "stopped": "KILLED",
    "refused": "KILLED",
    "failed": "FAILED",
}
TAG_CHARACTERS = 4000  # MLflow refuses tags over 8,000


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
        self._write(
            run,
            params=_flat(asdict(candidate.architecture)),
            metrics={**candidate.scores, "seconds": candidate.seconds},
            tags=_own({**tags, **notes}),
            step=candidate.rung,
            status=STATUS[candidate.state],
        )
        return str(run.info.run_id)

    def log_run(
        self,
        name: str,
        *,
        kind: Kind,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, object] | None = None,
        status: Status = "FINISHED",
        step: int = 0,
    ) -> str:
        """The child run `name` of a kind (a finalist, a reference), created or brought up to date. Returns its run id.

        Raises ValueError where a parameter has another value than MLflow has: parameters of a run never change.
        """
        run = self._child(kind, name, name)
        flat, own = _flat(params or {}), _own(tags or {})
        self._write(run, params=flat, metrics=metrics or {}, tags=own, step=step, status=status)
        return str(run.info.run_id)

    def log_curves(self, values: Sequence[tuple[int, Mapping[str, float]]], *, params: Mapping[str, object] | None = None) -> None:
        """On the parent run, in one call: the values of several steps, and parameters that it lacks."""
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for step, found in values for name, value in found.items()]
        known = self.client.get_run(self.run_id).data.params if params else {}
        new = [Param(name, value) for name, value in _flat(params or {}).items() if name not in known]
        self.client.log_batch(self.run_id, metrics, new)

    def log_front(
        self, front: Mapping[str, Any], *, plots: Sequence[Path] = (), metrics: Mapping[str, float] | None = None
    ) -> None:
        """On the parent run: `front.json`, the same as a table (`front_table.json`), plot files, metrics such as the hypervolume.

        The table is what `mlflow.log_table` would write, which cannot be used here: called again, it appends.
        """
        run = self.client.get_run(self.run_id)
        self.client.log_dict(self.run_id, dict(front), "front.json")
        self.client.log_dict(self.run_id, _table(front.get("members", ())), "front_table.json")
        for plot in plots:
            self.client.log_artifact(self.run_id, str(plot), "plots")
        table = json.dumps([{"path": "front_table.json", "type": "table"}])
        self._write(run, metrics=metrics or {}, tags={"mlflow.loggedArtifacts": table})

    def log_model(
        self,
        run_id: str,
        name: str,
        folder: Path,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> str:
        """A folder of files (ONNX, manifest, safetensors) as the run's LoggedModel `name`, with metrics of its own. Returns its id.

        The same files are uploaded once; other files under the same name become another model of the run.
        Raises ValueError where the folder has no files.
        """
        digest = _digest(folder)
        name = re.sub(r"""[/:.%"']""", "-", name)  # MLflow refuses these in a model's name, but not in a registered model's
        model_id = self._ready_model(run_id, name, digest) or self._upload(run_id, name, folder, digest, _flat(params or {}))
        run = self.client.get_run(run_id)
        if model_id not in {output.model_id for output in (run.outputs.model_outputs if run.outputs else ())}:
            from mlflow.entities import LoggedModelOutput

            self.client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
        self._write(run, metrics=metrics or {}, model_id=model_id)
        return model_id

    def register(
        self,
        registered_name: str,
        model_id: str,
        *,
        aliases: Sequence[str] = (),
        tags: Mapping[str, object] | None = None,
        description: str = "",
    ) -> int:
        """The version of a registered model that is `model_id`: made once, with its tags, description and aliases set anew.

        An alias that pointed to another version moves. Raises ValueError for a name that MLflow cannot take.
        """
        check_name(registered_name)
        model = self.client.get_logged_model(model_id)
        version = self._version(registered_name, model)
        for key, value in _own(tags or {}).items():
            self.client.set_model_version_tag(registered_name, version, key, value)
        self.client.update_model_version(registered_name, version, description)
        for alias in aliases:
            self.client.set_registered_model_alias(registered_name, alias, version)
        return int(version)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Ends the parent run; `open_tracking` sets it running again."""
        self.client.set_terminated(self.run_id, status)

    def _child(self, kind: Kind, name: str, title: str) -> "Run":
        key = f"{kind}/{name}"
        if key in self.children:
            return self.client.get_run(self.children[key])
        tags = {"mlflow.parentRunId": self.run_id, "srlnas.kind": kind, "srlnas.name": name}
        run = self.client.create_run(self.experiment_id, run_name=title, tags=tags)
        self.children[key] = run.info.run_id
        return run

    def _write(
        self,
        run: "Run",
        *,
        params: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        step: int = 0,
        status: Status | None = None,
        model_id: str | None = None,
    ) -> None:
        """What `run` lacks, in one log_batch: MLflow keeps each value of a metric that it is given, repeated ones too."""
        from mlflow.entities import Metric, Param, RunTag

        known: Mapping[str, float] = run.data.metrics if model_id is None else _model_metrics(self.client, model_id)
        now = int(time.time() * 1000)
        for name, value in (params or {}).items():
            if run.data.params.get(name, value) != value:
                raise ValueError(f"run {run.info.run_id} has {name} = {run.data.params[name]}, not {value}: give it another name")
        new_metrics = [
            Metric(name, float(value), now, step, model_id=model_id)
            for name, value in (metrics or {}).items()
            if math.isfinite(value) and known.get(name) != float(value)
        ]
        new_params = [Param(name, value) for name, value in (params or {}).items() if name not in run.data.params]
        new_tags = [RunTag(name, value) for name, value in (tags or {}).items() if run.data.tags.get(name, "") != value]
        if new_metrics or new_params or new_tags:
            self.client.log_batch(run.info.run_id, new_metrics, new_params, new_tags)
        if status == "RUNNING" != run.info.status:
            self.client.update_run(run.info.run_id, status="RUNNING")
        elif status not in (None, run.info.status):
            self.client.set_terminated(run.info.run_id, status)

    def _ready_model(self, run_id: str, name: str, digest: str) -> str | None:
        found = None
        for model in models_of(self.client, self.experiment_id, run_id):
            if model.name == name and str(model.status) == "READY" and model.tags.get("srlnas.digest") == digest:
                found = str(model.model_id)
            elif model.name == name and str(model.status) != "READY":
                self.client.delete_logged_model(model.model_id)  # what an upload that was cut off left behind
        return found

    def _upload(self, run_id: str, name: str, folder: Path, digest: str, params: dict[str, str]) -> str:
        tags = {"srlnas.digest": digest}
        model = self.client.create_logged_model(self.experiment_id, name, run_id, tags=tags, params=params, model_type="student")
        self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _version(self, registered_name: str, model: "LoggedModel") -> str:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(registered_name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in self.client.search_model_versions(f"name = '{registered_name}'", max_results=10_000):
            if version.tags.get("srlnas.model_id") == model.model_id:
                return str(version.version)
        # The source is the place of the files: with `models:/<id>`, a sqlite registry looks in MLflow's *global* tracking URI.
        # It keeps no model id either (seen with MLflow 3.17), hence the tag.
        tags, source = {"srlnas.model_id": model.model_id}, model.artifact_location
        version = self.client.create_model_version(registered_name, source, model.source_run_id, tags=tags, model_id=model.model_id)
        return str(version.version)


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
        uri=uri, experiment_id=experiment_id, run_id=run_id, client=client, children=_children(client, experiment_id, run_id)
    )
    tracking._write(run, tags={"mlflow.note.content": description, **_own(tags or {})}, status="RUNNING")
    return tracking


def _experiment(client: "MlflowClient", uri: str, name: str, description: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        place = None if scheme_of(uri) in SERVERS else (artifacts_folder(uri) / name).as_uri()
        return str(client.create_experiment(name, artifact_location=place, tags={"mlflow.note.content": description}))
    if found.lifecycle_stage == "deleted":
        raise ValueError(
            f"experiment {name!r} was deleted in MLflow: `mlflow experiments restore -x {found.experiment_id}` brings it back, "
            "or give the study another name"
        )
    return str(found.experiment_id)


def _children(client: "MlflowClient", experiment_id: str, run_id: str) -> dict[str, str]:
    children: dict[str, str] = {}
    token = None
    while True:
        page = client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=1000, page_token=token)
        children.update({f"{run.data.tags['srlnas.kind']}/{run.data.tags['srlnas.name']}": run.info.run_id for run in page})
        token = page.token
        if not token:
            return children


def _model_metrics(client: "MlflowClient", model_id: str) -> dict[str, float]:
    return {metric.key: metric.value for metric in client.get_logged_model(model_id).metrics or ()}


def _digest(folder: Path) -> str:
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    if not files:
        raise ValueError(f"{folder} has no files to log as a model")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _flat(values: Mapping[str, object]) -> dict[str, str]:
    """Parameters as MLflow has them: text, a sequence as its values with blanks between."""
    return {name: _text(value) for name, value in values.items()}


def _own(tags: Mapping[str, object]) -> dict[str, str]:
    """Tags with the prefix `srlnas.`, so that they cannot meet MLflow's own."""
    return {f"srlnas.{name.removeprefix('srlnas.')}": _text(value)[:TAG_CHARACTERS] for name, value in tags.items()}


def _table(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows for MLflow's table view (pandas' `split` layout): a member's fields, with architecture and scores spread out."""
    rows = []
    for member in members:
        row: dict[str, Any] = {}
        for name, value in member.items():
            row.update(value if isinstance(value, Mapping) else {name: value})
        rows.append({name: _text(value) if isinstance(value, list | tuple) else value for name, value in row.items()})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}
