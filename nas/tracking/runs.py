"""Runs in MLflow, brought up to date: what a run has already is not sent again, so that every call may be repeated."""

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
TAG_CHARACTERS = 4000  # MLflow refuses tags over 8,000


def write_run(
    client: "MlflowClient",
    run: "Run",
    *,
    params: Mapping[str, object] | None = None,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    step: int = 0,
    status: Status | None = None,
    model_id: str | None = None,
) -> None:
    """What `run` lacks, in one log_batch: MLflow keeps each value of a metric that it is given, repeated ones too.

    metrics: of the run or, with model_id, of one of its models; those that are not finite are left out.
    Raises ValueError where a parameter has another value than MLflow has: parameters of a run never change.
    """
    from mlflow.entities import Metric, Param, RunTag

    known: Mapping[str, float] = run.data.metrics if model_id is None else _model_metrics(client, model_id)
    now, flat = int(time.time() * 1000), flattened(params or {})
    for name, value in flat.items():
        if run.data.params.get(name, value) != value:
            raise ValueError(f"run {run.info.run_id} has {name} = {run.data.params[name]}, not {value}: give it another name")
    new_metrics = [
        Metric(name, float(value), now, step, model_id=model_id)
        for name, value in (metrics or {}).items()
        if math.isfinite(value) and known.get(name) != float(value)
    ]
    new_params = [Param(name, value) for name, value in flat.items() if name not in run.data.params]
    new_tags = [RunTag(name, value) for name, value in (tags or {}).items() if run.data.tags.get(name, "") != value]
    if new_metrics or new_params or new_tags:
        client.log_batch(run.info.run_id, new_metrics, new_params, new_tags)
    if status == "RUNNING" != run.info.status:
        client.update_run(run.info.run_id, status="RUNNING")
    elif status not in (None, run.info.status):
        client.set_terminated(run.info.run_id, status)


def children_of(client: "MlflowClient", experiment_id: str, run_id: str) -> dict[str, str]:
    """Run ids of a search's child runs, by `kind/name`."""
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


def text_of(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def flattened(values: Mapping[str, object]) -> dict[str, str]:
    """Parameters as MLflow has them: text, a sequence as its values with blanks between."""
    return {name: text_of(value) for name, value in values.items()}


def own_tags(tags: Mapping[str, object]) -> dict[str, str]:
    """Tags with the prefix `srlnas.`, so that they cannot meet MLflow's own."""
    return {f"srlnas.{name.removeprefix('srlnas.')}": text_of(value)[:TAG_CHARACTERS] for name, value in tags.items()}
