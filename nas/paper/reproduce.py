"""`srlnas reproduce`: the paper's table (Kerpicci et al., arXiv 2210.16611) on any teacher and corpus.

The teacher and students, each tuned for both tasks; some also for one task alone, and for both with the encoder frozen; beside them
two networks that distil nothing: the best student's architecture from scratch, and BC-ResNet. The teacher's rate and length are
chosen among several for each variant; all others have the recipe's (BC-ResNet a rate of its own). Lives in a study folder: what
`rows.jsonl` has is not trained again.
"""

import shutil
from typing import Any

from rich.console import Console

from nas.paper.experiment import Experiment
from nas.paper.table import build_table, log_rows
from nas.paper.text import markdown
from nas.paper.training import Reproduction
from nas.planning.preparation import facts, prepare
from nas.study.budget import parse_budget
from nas.study.folder import Study
from nas.study.progress import progress
from nas.tracking.mirror import Tracking, tracked
from nas.tracking.outage import first_line
from nas.worker import cluster
from nas.worker.ending import ended_by_sigterm
from nas.worker.own_ray import watched
from nas.worker.unfinished import forget_all


def reproduce(study: Study, experiment: Experiment, console: Console, *, ray_address: str | None = None) -> dict[str, Any]:
    """Runs or continues an experiment; writes paper.json and paper.md to the study folder, and both with all runs to MLflow. Ctrl-C
    writes the table so far and passes on.

    Raises ValueError for what the user can mend.
    """
    config = study.config
    budget = parse_budget(config.budget)
    with study.locked():
        cluster.connect(ray_address)
        account = cluster.account_of(study, budget)
        with ended_by_sigterm(study.folder), tracked(config.tracking_uri, config.name) as tracking:
            context = prepare(study, budget, console)
            with progress(console, "trainings") as tick:
                reproduction = Reproduction(context, experiment, account, tick, console.print)
                try:
                    with watched(f"srlnas reproduce --resume {config.name}"):
                        reproduction.run()
                except KeyboardInterrupt:
                    write_table(reproduction)
                    raise
            table = write_table(reproduction)
            _publish(study, tracking, reproduction.records())
    shutil.rmtree(context.batches, ignore_errors=True)
    if not table["failed"]:
        forget_all(study)
    return table


def write_table(reproduction: Reproduction) -> dict[str, Any]:
    """Of what has been trained."""
    study, rows = reproduction.study, reproduction.rows
    best = reproduction.choice.made().get("best")
    table = build_table(study, reproduction.records(), facts(reproduction.context), rows.experiment, best)
    study.write_json("paper.json", table)
    (study.folder / "paper.md").write_text(markdown(table))
    return table


def _publish(study: Study, tracking: Tracking, records: list[dict[str, Any]]) -> None:
    """Raises ValueError when MLflow does not take it: nothing is lost then."""
    try:
        log_rows(tracking, records)
        for name in ("paper.json", "paper.md"):
            tracking.client.log_artifact(tracking.run_id, str(study.folder / name))
    except Exception as error:  # MLflow's and its transports' many kinds
        raise ValueError(
            f"MLflow did not take the results ({first_line(error)}); the table is in {study.folder}/paper.md, and "
            f"`srlnas reproduce --resume {study.config.name}` logs it again"
        ) from error
