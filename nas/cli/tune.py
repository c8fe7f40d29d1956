"""`srlnas tune`: a picked model, trained on without a search."""

import time
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import TrackingUri, check_resumed, exit_code


def tune(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A run id, models:/name@alias or models:/name/version.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Resource time: 2cpu-hours; default: 20cpu-minutes, or 5gpu-minutes. With --resume: the new total."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Parquet corpus beside those of the model's study; may be repeated.")
    ] = None,
    trials: Annotated[list[str] | None, typer.Option(help="Parquet trial list of a further corpus; may be repeated.")] = None,
    noise: Annotated[str | None, typer.Option(help="Parquet corpus of background noise; default: that of the study.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study folder; default: tuned and the time.")] = None,
    steps: Annotated[int | None, typer.Option(help="Fine-tuning steps; default: as many as the budget buys.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs of a worker; default: as in the study.")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs of a worker; default: as in the study.")] = None,
    resume: Annotated[str | None, typer.Option(help="Continue this tuning; --budget may be new.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; default: RAY_ADDRESS, else Ray on this machine.")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Tune a model on: longer, with more speech, with further keywords. The result is a new version of it in MLflow."""
    from nas.cli.main import print_front
    from nas.study.folder import open_study
    from nas.study.progress import console
    from nas.tracking.connection import shown
    from nas.tune import begin_tuning
    from nas.tune import tune as run

    if (model is None) == (resume is None):
        raise ValueError("name a model, as models:/NAME@knee, or a tuning to go on with by --resume")
    if resume is not None:
        check_resumed(context, "budget")
        study = open_study(resume, commands=("tune",))
    else:
        assert model is not None
        study = begin_tuning(
            model,
            name=name or f"tuned-{time.strftime('%Y%m%d-%H%M%S')}",
            budget=budget,
            tracking_uri=tracking_uri,
            data=[str(Path(path).resolve()) for path in data or ()],
            trials=[str(Path(path).resolve()) for path in trials or ()],
            noise=str(Path(noise).resolve()) if noise else None,
            finetune_steps=steps,
            cpus=cpus,
            gpus=gpus,
            ray_address=ray_address,
        )
    try:
        front = run(study, console(), ray_address=ray_address, budget=budget)
    except KeyboardInterrupt as stop:
        typer.echo(f"\ninterrupted; continue with:\n  srlnas tune --resume {study.config.name}")
        raise typer.Exit(exit_code(stop)) from None
    print_front(front)
    address = shown(study.config.tracking_uri or "")
    server = f" --tracking-uri {address}" if address else ""
    made = f"models:/{front['tuned_from']['registered']}@tuned"
    typer.echo(f"\nnext:\n  srlnas export {made}{server}   write deploy/exports/ for the device")
