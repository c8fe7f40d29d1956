"""The command line: thin commands that import late. A user's mistake is one line; --debug shows the traceback."""

import io
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from nas.cli.data import data_app
from nas.cli.export import export, verify
from nas.cli.options import AGAIN, TRIALS_HELP, RecipeFile, TrackingUri, check_resumed, exit_code, read_recipe
from nas.cli.profile import profile_app
from nas.cli.reproduce import reproduce
from nas.cli.studies import studies
from nas.cli.teacher import teacher_app
from nas.cli.tune import tune

SHOWN_STUDIES = 5  # by `srlnas ui`

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Finds small speech encoders for edge devices."
)
app.add_typer(data_app, name="data")
app.add_typer(teacher_app, name="teacher")
app.add_typer(profile_app, name="profile")
app.command()(reproduce)
app.command()(tune)
app.command()(studies)
app.command()(export)
app.command()(verify)


@app.callback()
def root(debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")] = False) -> None:
    """Options before the command."""


@app.command()
def search(
    context: typer.Context,
    budget: Annotated[
        str | None, typer.Option(help="Resource time: 8gpu-days, 4gpu-hours; default 30cpu-minutes. With --resume: the new total.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Parquet corpus; may be repeated. Default: an embedded synthetic corpus.")
    ] = None,
    trials: Annotated[list[str] | None, typer.Option(help=TRIALS_HELP)] = None,
    noise: Annotated[str | None, typer.Option(help="Parquet corpus of background noise for augmentation.")] = None,
    teacher: Annotated[str, typer.Option(help="`mini`, `mini-hubert` (bundled), a folder or a hub id.")] = "mini",
    space: Annotated[str, typer.Option(help="Search space; `srlnas spaces` lists them.")] = "default",
    target: Annotated[str, typer.Option(help="Device: a name or a .toml file.")] = "host",
    precision: Annotated[
        str | None, typer.Option(help="Score, measure and export finalists in fp32 or int8; default: the target's, fp32.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study; default: space and time.")] = None,
    max_latency: Annotated[str | None, typer.Option(help="Refuse slower candidates: 12ms.")] = None,
    max_params: Annotated[str | None, typer.Option(help="Refuse larger candidates: 2M, 300k.")] = None,
    max_memory: Annotated[str | None, typer.Option(help="Refuse candidates whose process needs more: 64MB.")] = None,
    candidates: Annotated[int | None, typer.Option(help="Train at most so many candidates.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Distillation and fine-tuning steps of a candidate; default: planned from the budget.")
    ] = None,
    rungs: Annotated[
        int | None, typer.Option(help="Lengths at which candidates may be stopped; default: planned, at most 3.")
    ] = None,
    reduction: Annotated[int, typer.Option(help="One in so many goes on to the next rung, which is so many times as long.")] = 3,
    sampler: Annotated[str, typer.Option(help="What proposes candidates: gp, optuna-gp, tpe, nsga2, random.")] = "gp",
    warm_start: Annotated[
        str,
        typer.Option(help="Begin candidates with a shared student's weights: on, off, auto, or studies/NAME/shared.safetensors."),
    ] = "auto",
    learn_from: Annotated[
        list[str] | None, typer.Option(help="Study of this teacher and space whose candidates tell what to try; may be repeated.")
    ] = None,
    finalists: Annotated[int, typer.Option(help="Train at most so many candidates at full length.")] = 8,
    recipe: RecipeFile = None,
    batch: Annotated[int | None, typer.Option(help="Windows an update; default: the recipe's, 16.")] = None,
    cpus: Annotated[float, typer.Option(help="CPUs of one worker.")] = 1.0,
    gpus: Annotated[
        float, typer.Option(help="GPUs of one worker, fractions too; default with a GPU budget: as its memory allows, measured.")
    ] = 0.0,
    workers: Annotated[int | None, typer.Option(help="Trainings at once at most; default: what the cluster has room for.")] = None,
    share: Annotated[
        float | None, typer.Option(help="Of the cluster, that trainings hold at most, beside other studies: 0.5; default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of proposals, weights and batches.")] = 0,
    targets: Annotated[str, typer.Option(help="Teacher states: auto, cached, online.")] = "auto",
    cache: Annotated[str, typer.Option(help="Folder for decoded audio, teacher states and references.")] = "studies/.cache",
    resume: Annotated[str | None, typer.Option(help="Continue this study; --budget, --workers, --share may be new.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; default: RAY_ADDRESS, else Ray on this machine.")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Search for students within a budget and log the front to MLflow."""
    from nas.api import search as run_search
    from nas.study.config import StudyConfig
    from nas.study.folder import open_study

    study: StudyConfig | str
    if resume is not None:
        check_resumed(context, "budget", "workers", "share")
        study = resume
    else:
        study = StudyConfig(
            name=name or f"{space}-{time.strftime('%Y%m%d-%H%M%S')}",
            space=space,
            teacher=teacher,
            data=tuple(data or ()),
            trials=tuple(trials or ()),
            noise=noise,
            target=target,
            precision=precision,  # type: ignore[arg-type]  # checked by the configuration
            cache=cache,
            max_latency_ms=quantity(max_latency, {"ms": 1.0, "s": 1e3}, "--max-latency"),
            max_params=quantity(max_params, {"k": 1e3, "M": 1e6}, "--max-params"),
            max_memory=quantity(max_memory, {"kB": 1e3, "MB": 1e6, "GB": 1e9}, "--max-memory"),
            candidates=candidates,
            distill_steps=steps,
            finetune_steps=steps,
            rungs=rungs,
            reduction=reduction,
            sampler=sampler,  # type: ignore[arg-type]  # checked by the configuration
            warm_start=warm_start,
            learn_from=tuple(learn_from or ()),
            finalists=finalists,
            targets=targets,  # type: ignore[arg-type]  # checked by the configuration
            cpus=cpus,
            gpus=gpus,
            seed=seed,
            tracking_uri=tracking_uri,
            recipe=read_recipe(recipe, batch),
        )
    named = study if isinstance(study, str) else study.name
    try:
        front = run_search(study, budget=budget, workers=workers, share=share, ray_address=ray_address)
    except KeyboardInterrupt as stop:
        typer.echo(f"\n{interrupted(Path('studies') / named)}")
        raise typer.Exit(exit_code(stop)) from None
    print_front(front)
    typer.echo(next_steps(named, open_study(named).config.tracking_uri))


def interrupted(study: Path) -> str:
    """What an interrupted search leaves in its folder, and how it goes on."""
    if not study.is_dir():
        return "interrupted before the study was begun: give the same command again"
    so_far = f"; the front so far is in {study}/front.json" if (study / "front.json").is_file() else ""
    return f"interrupted{so_far}; continue with:\n  srlnas search --resume {study.name}"


def print_front(front: dict[str, Any]) -> None:
    from nas.report.table import rich_corpora, rich_table
    from nas.study.progress import console

    for table in (rich_table(front), *rich_corpora(front)):
        console().print(table)
    for note in front["notes"]:
        typer.echo(f"- {note}")


def next_steps(study: str, tracking_uri: str | None) -> str:
    from nas.tracking.connection import shown

    address = shown(tracking_uri or "")
    server = f" --tracking-uri {address}" if address else ""
    pages = f"open {address}" if address.startswith("http") else f"srlnas ui{server}                     "
    return (
        f"\nnext:\n  {pages}   look at the runs and models\n"
        f"  studies/{study}/front.html     pick by limits, in a browser\n"
        f"  srlnas front {study}           print this table again\n"
        f"  srlnas export models:/{study}@knee{server}   write deploy/exports/ for the device"
    )


def quantity(text: str | None, units: dict[str, float], option: str) -> float | None:
    """`12ms` in the first unit's measure, a bare number too. Raises ValueError on anything else."""
    if text is None:
        return None
    unit = next((unit for unit in sorted(units, key=len, reverse=True) if text.endswith(unit)), "")
    try:
        value = float(text.removesuffix(unit)) * units.get(unit, 1.0)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{option} is {text!r}; write a number above zero and one of {', '.join(units)}")
    return value


@app.command()
def front(
    studies: Annotated[list[str] | None, typer.Argument(help="Names of studies; default: the last.", metavar="[STUDY]...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page to this file, several studies laid over one another.")] = None,
) -> None:
    """Print the front of a study, finished or not, or write the page of several."""
    from nas.api import front as front_of
    from nas.report.page import write_page
    from nas.study.folder import open_study

    names: list[str | None] = [*studies] if studies else [None]
    opened = [open_study(name, commands=("search", "tune")) for name in names]
    fronts = [front_of(study) for study in opened]
    if html:
        typer.echo(f"{write_page(fronts, html)}: open it in a browser")
        return
    for content in fronts:
        if as_json:
            typer.echo(json.dumps(content, indent=2))
        else:
            print_front(content)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    tracking_uri: TrackingUri = None,
) -> None:
    """Open MLflow's pages on this machine alone."""
    from nas.tracking.connection import ENVIRONMENT, check_exists, connect, default_tracking_uri, ui_command
    from nas.tracking.pages import TRAINING, study_links

    uri = tracking_uri or default_tracking_uri()
    check_exists(uri)
    command = ui_command(uri, port)
    typer.echo(f"MLflow: http://127.0.0.1:{port}/#/experiments?{TRAINING} (Ctrl-C ends it)")
    for study, link in study_links(connect(uri), SHOWN_STUDIES).items():
        typer.echo(f"  {study}: http://127.0.0.1:{port}/{link}")
    os.execve(command[0], command, {**ENVIRONMENT, **os.environ})


@app.command()
def spaces(
    teacher: Annotated[str, typer.Option(help="A bundled name, a folder or a hub id: spaces are made from a teacher.")] = "mini",
) -> None:
    """List the search spaces with their size and the range of their students."""
    from rich.table import Table

    from nas.cli.describe import space_rows
    from nas.study.progress import console

    table = Table(
        title=f"search spaces for the teacher {teacher}",
        caption="one window of 1 s, 12 keywords; smallest to largest student by params",
    )
    for column in ("space", "architectures", "params, M", "MACs, M"):
        table.add_column(column, justify="left" if column == "space" else "right")
    for row in space_rows(teacher):
        table.add_row(*row)
    console().print(table)


def _one_line(message: Warning | str, category: type[Warning], *where: Any, **line: Any) -> str:
    """A warning without the line of code that gave it."""
    return f"srlnas: warning: {' '.join(str(message).split())}\n"


def _leave(code: object) -> None:
    """Ends the process where Ray of its own has died: Ray's farewell would wait for it for a minute, and then abort."""
    if "ray" in sys.modules:
        from nas.worker.own_ray import died

        if died():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else int(code is not None))


def _of_the_disk(error: Exception) -> ValueError | None:
    """Of what was raised because a disk is full."""
    from nas.study.room import found_no_room, no_room

    return no_room(str(error)) if found_no_room(error) and not isinstance(error, ValueError) else None


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C ends in order; a second one at once, as a kill does, of which a study loses nothing either."""
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    raise KeyboardInterrupt


def main() -> None:
    """Runs a command. A ValueError is the user's to mend (exit code 2); what else goes wrong is named in one line too (1)."""
    warnings.formatwarning = _one_line
    for stream in (sys.stdout, sys.stderr):  # what the terminal's code page lacks is written in escapes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not of a shell's background job, which ignores it
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(AGAIN))  # so that what is half done is taken away
    try:
        app()
    except SystemExit as end:
        _leave(end.code)
        raise
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        error = _of_the_disk(error) or error
        mine = isinstance(error, ValueError)
        text = str(error) if mine else f"{type(error).__name__}: {error} (`srlnas --debug ...` shows where)"
        typer.echo(f"srlnas: {' '.join(text.split())}", err=True)
        sys.exit(2 if mine else 1)
