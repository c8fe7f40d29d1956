"""Students in MLflow: files as a model of a run, and a model as a version in the registry. Every call may be repeated."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas.study.config import check_name
from nas.tracking.mirror import Tracking
from nas.tracking.registry import models_of
from nas.tracking.runs import own_tags, write_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


def log_model(tracking: Tracking, run_id: str, name: str, folder: Path, *, metrics: Mapping[str, float] | None = None) -> str:
    """A folder of files (ONNX, manifest, safetensors) as the run's LoggedModel `name`, with metrics of its own. Returns its id.

    The same files are uploaded once; other files under the same name become another model of the run.
    Raises ValueError where the folder has no files.
    """
    client, digest = tracking.client, _digest(folder)
    name = re.sub(r"""[/:.%"']""", "-", name)  # MLflow refuses these in a model's name, but not in a registered model's
    model_id = _ready_model(tracking, run_id, name, digest) or _upload(tracking, run_id, name, folder, digest)
    run = client.get_run(run_id)
    if model_id not in {output.model_id for output in (run.outputs.model_outputs if run.outputs else ())}:
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
    write_run(client, run, metrics=metrics, model_id=model_id)
    return model_id


def register(
    client: "MlflowClient",
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
    version = _version(client, registered_name, client.get_logged_model(model_id))
    known, wanted = client.get_model_version(registered_name, version).tags, own_tags({**(tags or {}), "model_id": model_id})
    for key in known.keys() - wanted.keys():
        if key.startswith("srlnas."):  # of an earlier version of srlnas
            client.delete_model_version_tag(registered_name, version, key)
    for key, value in wanted.items():
        client.set_model_version_tag(registered_name, version, key, value)
    client.update_model_version(registered_name, version, description)
    for alias in aliases:
        client.set_registered_model_alias(registered_name, alias, version)
    return int(version)


def _ready_model(tracking: Tracking, run_id: str, name: str, digest: str) -> str | None:
    found = None
    for model in models_of(tracking.client, tracking.experiment_id, run_id):
        if model.name == name and str(model.status) == "READY" and model.tags.get("srlnas.digest") == digest:
            found = str(model.model_id)
        elif model.name == name and str(model.status) != "READY":
            tracking.client.delete_logged_model(model.model_id)  # what an upload that was cut off left behind
    return found


def _upload(tracking: Tracking, run_id: str, name: str, folder: Path, digest: str) -> str:
    client, tags = tracking.client, {"srlnas.digest": digest}
    model = client.create_logged_model(tracking.experiment_id, name, run_id, tags=tags, params={}, model_type="student")
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _version(client: "MlflowClient", registered_name: str, model: "LoggedModel") -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(registered_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{registered_name}'", max_results=10_000):
        if version.tags.get("srlnas.model_id") == model.model_id:
            return str(version.version)
    # The source is the place of the files: with `models:/<id>`, a sqlite registry looks in MLflow's *global* tracking URI.
    # It keeps no model id either (seen with MLflow 3.17), hence the tag.
    tags, source = {"srlnas.model_id": model.model_id}, model.artifact_location
    version = client.create_model_version(registered_name, source, model.source_run_id, tags=tags, model_id=model.model_id)
    return str(version.version)


def _digest(folder: Path) -> str:
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    if not files:
        raise ValueError(f"{folder} has no files to log as a model")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
