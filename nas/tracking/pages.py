"""What MLflow's pages open on, and links between them.

MLflow 3 opens an experiment on pages for generative AI unless it is told otherwise: its first releases by a tag of the experiment,
3.17 by the address. An address may also name a view, columns and order of the runs, that the experiment keeps in a tag. Links are
relative: they hold wherever the server is.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRAINING = "workflowType=machine_learning"
VIEW = "members"
COLUMNS = ("test_keyword_error", "test_eer", "latency_ms", "memory_bytes", "params")  # MLflow sorts what one group of columns has


def experiment_tags() -> Mapping[str, str]:
    """That the experiment is of trainings, and the view `members` of it: from the fastest, with the columns that matter."""
    view = {
        "searchFilter": "tags.`srlnas.kind` = 'finalist'",
        "orderByKey": "metrics.`latency_ms`",
        "orderByAsc": True,
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "startTime": "ALL",
        "selectedColumns": [f"metrics.`{name}`" for name in COLUMNS],
    }
    return {"mlflow.experimentKind": "custom_model_development", f"mlflow.sharedViewState.{VIEW}": json.dumps(view)}


def members_link(experiment_id: str) -> str:
    """Of the experiment's runs, members first."""
    return f"#/experiments/{experiment_id}/runs?{TRAINING}&viewStateShareKey={VIEW}"


def artifact_link(experiment_id: str, run_id: str, path: str) -> str:
    """Of a file of a run, shown."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{path}?{TRAINING}"


def study_links(client: "MlflowClient", most: int) -> Mapping[str, str]:
    """The studies that changed last, by name, and the address of each below the server's."""
    newest = client.search_experiments(order_by=["last_update_time DESC"], max_results=most + 1)  # the default experiment is empty
    return {found.name: members_link(found.experiment_id) for found in newest if f"mlflow.sharedViewState.{VIEW}" in found.tags}
