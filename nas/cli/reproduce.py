"""`srlnas reproduce`: the paper's table on one's own teacher and speech."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import TRIALS_HELP, RecipeFile, TrackingUri, check_resumed, exit_code, numbers, read_recipe

if TYPE_CHECKING:
    from search_spaces.architecture import Architecture


def reproduce(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Name of the study folder.")] = "paper",
    data: Annotated[
        list[str] | None, typer.Option(help="Parquet corpus; may be repeated. Default: an embedded synthetic corpus.")
    ] = None,
    trials: Annotated[list[str] | None, typer.Option(help=TRIALS_HELP)] = None,
    noise: Annotated[str | None, typer.Option(help="Parquet corpus of background noise for augmentation.")] = None,
    teacher: Annotated[str, typer.Option(help="`mini`, `mini-hubert` (bundled), a folder or a hub id.")] = "mini",
    student: Annotated[
        list[Path] | None,
        typer.Option(help="A trained student's folder, or an architecture as JSON; may be repeated. The paper's is always there."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Fine-tuning steps.")] = 1000,
    distill_steps: Annotated[
        int | None, typer.Option(help="Distillation steps; default: as many, or 0 where the recipe fits students to their teacher.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Of every row that is tuned for both tasks.")] = 3,
    seeds_alone: Annotated[
        int, typer.Option(help="Of the rows for one task, and of those with the encoder frozen; 0 leaves them out.")
    ] = 1,
    rates: Annotated[str, typer.Option(help="The teacher's rates to choose from, for each of its rows.")] = "1e-4,2e-4,5e-4",
    lengths: Annotated[str, typer.Option(help="The teacher's lengths to choose from, shares of the steps.")] = "0.5,1",
    recipe: RecipeFile = None,
    batch: Annotated[int | None, typer.Option(help="Windows an update; default: the recipe's, 16.")] = None,
    target: Annotated[str, typer.Option(help="Device: a name or a .toml file.")] = "host",
    cpus: Annotated[float, typer.Option(help="CPUs of one worker.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs of one worker.")] = 0.0,
    cache: Annotated[str, typer.Option(help="Folder for decoded audio and teacher states.")] = "studies/.cache",
    resume: Annotated[str | None, typer.Option(help="Continue this experiment; other options are then its own.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; default: RAY_ADDRESS, else Ray on this machine.")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Run the paper's experiment: teacher and students, one task, both, frozen, from scratch, and BC-ResNet."""
    from nas.paper.experiment import Experiment, new_experiment, read_experiment
    from nas.paper.reproduce import reproduce as run
    from nas.planning.preparation import check_config
    from nas.study.config import StudyConfig
    from nas.study.folder import open_study
    from nas.study.progress import console

    if resume is not None:
        check_resumed(context)
        study = open_study(resume, commands=("reproduce",))
        experiment = read_experiment(study)
    else:
        experiment = Experiment(
            seeds=seeds,
            seeds_alone=seeds_alone,
            rates=numbers(rates, "--rates", float),
            lengths=numbers(lengths, "--lengths", float),
            students=_read_students(student or []),
        )
        chosen = read_recipe(recipe, batch)
        config = StudyConfig(
            name=name,
            teacher=teacher,
            data=tuple(data or ()),
            trials=tuple(trials or ()),
            noise=noise,
            target=target,
            cache=cache,
            budget="1gpu-days" if gpus else "1cpu-days",
            distill_steps=(0 if chosen.fit_windows else steps) if distill_steps is None else distill_steps,
            finetune_steps=steps,
            cpus=cpus,
            gpus=gpus,
            tracking_uri=tracking_uri,
            recipe=chosen,
        ).absolute()
        check_config(config, ray_address)
        study = new_experiment(config, experiment)
    try:
        run(study, experiment, console(), ray_address=ray_address)
    except KeyboardInterrupt as stop:
        typer.echo(f"\ninterrupted; continue with:\n  srlnas reproduce --resume {study.config.name}")
        raise typer.Exit(exit_code(stop)) from None
    typer.echo((study.folder / "paper.md").read_text())
    typer.echo(f"{study.folder}/paper.md, paper.json; runs in MLflow: srlnas ui")


def _read_students(paths: list[Path]) -> dict[str, "Architecture"]:
    """By the names of their files. Raises ValueError where two have the same."""
    students = {path.resolve().name if path.is_dir() else path.stem: _read_architecture(path) for path in paths}
    if len(students) < len(paths):
        raise ValueError(f"--student names {len(paths)} files of {len(students)} names: rename one")
    return students


def _read_architecture(path: Path) -> "Architecture":
    """Raises ValueError where there is none."""
    from search_spaces.architecture import Architecture
    from search_spaces.kinds import text_of
    from trainers.networks.student import ARCHITECTURE_FILE

    file = path / ARCHITECTURE_FILE if path.is_dir() else path
    try:
        fields = json.loads(text_of(file))
        return Architecture.from_dict(fields.get("architecture", fields))
    except FileNotFoundError:
        raise ValueError(f"there is no {file}") from None
    except (AttributeError, TypeError, KeyError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{file} is no architecture in JSON, nor a student's {ARCHITECTURE_FILE}") from None
