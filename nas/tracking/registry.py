"""Models that MLflow keeps: finding one by run, alias or version, and downloading its files."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas.tracking.connection import check_exists, connect, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model of the registry or of a run, downloaded. `version` is None where it was named by its run."""

    run_id: str
    name: str
    version: int | None
    folder: Path


def resolve_model(model: str, tracking_uri: str, *, folder: Path | None = None) -> ResolvedModel:
    """Downloads a model's files into `folder` (a new temporary one without it); ResolvedModel.folder is where in it they are.

    model: id of a run (32 hexadecimal digits), `models:/name@alias` or `models:/name/version`.
    Raises ValueError for other texts, for what MLflow does not have (naming what it has), and where no MLflow answers.
    """
    address = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model)
    if not address and not re.fullmatch(r"[0-9a-f]{32}", model):
        raise ValueError(f"model {model!r}: give a run id (32 hexadecimal digits), models:/name@alias or models:/name/version")
    check_exists(tracking_uri)
    client = connect(tracking_uri)
    try:
        logged, name, version = _registered(client, *address.groups()) if address else (_of_run(client, model), None, None)
    except ValueError as error:
        raise ValueError(f"{error} (asked {shown(tracking_uri)})") from error
    from mlflow.artifacts import download_artifacts

    target = Path(folder or tempfile.mkdtemp(prefix="srlnas-model-"))
    target.mkdir(parents=True, exist_ok=True)
    # MLflow answers with the folder of the files: `target` itself or a folder in it, as the kind of store has it.
    files = download_artifacts(artifact_uri=logged.artifact_location, dst_path=str(target), tracking_uri=tracking_uri)
    return ResolvedModel(run_id=str(logged.source_run_id), name=name or logged.name, version=version, folder=Path(files))


def log_beside(run_id: str, file: Path, tracking_uri: str) -> None:
    """Writes a file to the run of the search that a member's run belongs to, over the one of its name."""
    client = connect(tracking_uri)
    client.log_artifact(client.get_run(run_id).data.tags["mlflow.parentRunId"], str(file))


def models_of(client: "MlflowClient", experiment_id: str, run_id: str) -> list["LoggedModel"]:
    """A run's models, the newest first."""
    newest = [{"field_name": "creation_time", "ascending": False}]
    return list(client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", order_by=newest))


def _of_run(client: "MlflowClient", run_id: str) -> "LoggedModel":
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise ValueError(f"MLflow has no run {run_id}; {_known(client)}") from error
    ready = [model for model in models_of(client, run.info.experiment_id, run_id) if str(model.status) == "READY"]
    if not ready:
        raise ValueError(f"run {run_id} ({run.info.run_name}) has no model; {_known(client)}")
    return ready[0]


def _registered(client: "MlflowClient", name: str, alias: str | None, version: str | None) -> tuple["LoggedModel", str, int]:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version or "")
    except MlflowException as error:
        raise ValueError(f"MLflow has no models:/{name}{'@' + alias if alias else f'/{version}'}; {_known(client)}") from error
    if "srlnas.model_id" not in found.tags:
        raise ValueError(f"models:/{name}/{found.version} was not registered by srlnas; {_known(client)}")
    return client.get_logged_model(found.tags["srlnas.model_id"]), name, int(found.version)


def _known(client: "MlflowClient") -> str:
    models = client.search_registered_models(max_results=100)
    names = [f"models:/{model.name}@{alias}" for model in models for alias in sorted(model.aliases)]
    names += [f"models:/{model.name}/<version>" for model in models if not model.aliases]
    return "it has " + ", ".join(names) if names else "it has no registered models"
