"""`srlnas profile`: what a device needs for a student, from a handful of measurements on it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nas.device.profile import Profile
    from search_spaces.architecture import Heads, Network
    from trainers.teacher.teacher import Teacher

profile_app = typer.Typer(help="Calibrate latency and memory of a device: here, over SSH, or with a kit to carry.")

TargetName = Annotated[str, typer.Option("--target", help="Device: a name (`srlnas profile targets`) or a .toml file.")]
TeacherName = Annotated[
    str, typer.Option("--teacher", help="A bundled name, a folder or a hub id: students are made from a teacher.")
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="The recipe of the searches to come: it says what heads read.")]
Number = Annotated[int, typer.Option("--measurements", help="Students that are measured: 10 are good, 20 better.")]
Precisions = Annotated[str, typer.Option("--precision", help="Beside fp32: int8, as exports have it.")]


@profile_app.callback(invoke_without_command=True)
def profile(
    context: typer.Context,
    target: TargetName = "host",
    host: Annotated[str | None, typer.Option(help="user@device: measure there over OpenSSH; default: this machine.")] = None,
    python: Annotated[str, typer.Option(help="Python on the device.")] = "python3",
    measurements: Number = 10,
    precision: Precisions = "fp32",
    teacher: TeacherName = "mini",
    recipe: RecipeFile = None,
) -> None:
    """Measure a target, here or over SSH, and write profiles/TARGET.json, which searches predict with."""
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
        if given:
            raise ValueError(f"--{given[0]} stands before {context.invoked_subcommand}: write options after the command")
        return
    from deploy.target import load_target
    from nas.device.calibrate import calibrate
    from nas.device.profile import HERE, profile_path, write_profile
    from nas.study.progress import console, progress

    device = load_target(target)
    if host is not None:
        _check_elsewhere(target)
    if host is None and not device.is_here:
        raise ValueError(
            f"{device.name} is not this machine: give --host user@device, or carry a kit: `srlnas profile kit --target {target}`"
        )
    of_teacher, heads = _students_of(teacher, recipe)
    with progress(console(), f"measuring {host or 'this machine'}") as tick:
        measured = calibrate(
            device,
            of_teacher,
            heads,
            number=measurements,
            precisions=_precisions(precision),
            where=host or HERE,
            python=python,
            tell=tick,
        )
    write_profile(measured, profile_path(device.name))
    show(measured)


@profile_app.command()
def kit(
    archive: Annotated[Path, typer.Argument(help="Archive to write, .tar.gz.")] = Path("srlnas-kit.tar.gz"),
    target: TargetName = "host",
    measurements: Number = 10,
    precision: Precisions = "fp32",
    teacher: TeacherName = "mini",
    recipe: RecipeFile = None,
) -> None:
    """Write an archive to carry to a device: unpack it there, run its measure.py, bring result.json back."""
    import tempfile

    from deploy.kit import FOLDER, pack
    from deploy.measure import RESULT_FILE
    from deploy.target import load_target
    from nas.device.calibrate import calibration_kit

    if not archive.name.endswith(".tar.gz"):
        raise ValueError(f"{archive} is written as a .tar.gz: name it so")
    _check_elsewhere(target)
    device = load_target(target)
    of_teacher, heads = _students_of(teacher, recipe)
    with tempfile.TemporaryDirectory() as folder:
        made, networks = calibration_kit(Path(folder) / "kit", of_teacher, heads, device, measurements, _precisions(precision))
        archive.write_bytes(pack(made))
        _remember(made.digest, target, of_teacher, heads, networks)
    typer.echo(
        f"{archive}: {archive.stat().st_size / 1e6:.1f} MB, {len(networks) * len(_precisions(precision))} models; on the device:\n"
        f"  tar xzf {archive.name} && python3 {FOLDER}/measure.py\nthen, here:\n  srlnas profile fit {FOLDER}/{RESULT_FILE}"
    )


@profile_app.command()
def fit(
    result: Annotated[Path, typer.Argument(help="result.json of a kit that was made here.")],
) -> None:
    """Read a kit's result and write profiles/TARGET.json."""
    from nas.device.profile import profile_path, write_profile

    measured = profile_of(result)
    write_profile(measured, profile_path(measured.target))
    show(measured)


def profile_of(result: Path) -> "Profile":
    """What a kit of this working folder measured. Raises ValueError where the file is no result of one."""
    from deploy.measure import FORMAT
    from deploy.target import load_target
    from nas.device.calibrate import profile_from
    from nas.device.profile import CARRIED
    from search_spaces.architecture import Geometry, network_from_dict
    from search_spaces.kinds import text_of

    try:
        content = json.loads(text_of(result))
        version, digest = content["format"], str(content["kit"])
    except OSError as error:
        raise ValueError(f"cannot read {result}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{result} is no result of a kit") from None
    if version != FORMAT:
        raise ValueError(f"{result} has format {version}, this srlnas reads {FORMAT}: make a new kit and run it")
    known = _kit_path(digest)
    if not digest.isalnum() or not known.is_file():
        raise ValueError(f"{result} is of a kit that was not made in this folder: make one with `srlnas profile kit` and run it")
    of = json.loads(known.read_text())
    networks = {name: network_from_dict(fields) for name, fields in of["networks"].items()}
    target = load_target(of["target"])
    return profile_from(content, networks, target, Geometry.from_dict(of["geometry"]), of["heads"], CARRIED)


@profile_app.command()
def targets() -> None:
    """List the targets that come with srlnas, and what is known of each."""
    from rich.table import Table

    from deploy.target import known_targets, load_target
    from nas.device.profile import profile_path
    from nas.study.progress import console

    columns = ("target", "latency is", "cores", "memory MB", "GFLOP/s", "GB/s", "what it is")
    table = Table(*columns, caption="one core, sustained, by data sheet")
    for name in known_targets():
        t = load_target(name)
        kind = "calibrated" if profile_path(name).is_file() else "calibrated in each search" if t.is_here else "data sheet"
        figures = (t.cores, t.memory_bytes and round(t.memory_bytes / 1e6), t.sustained_gflops, t.sustained_bandwidth)
        table.add_row(name, kind, *("" if figure is None else f"{figure:g}" for figure in figures), t.description)
    console().print(table)


def show(profile: "Profile") -> None:
    """What was measured, how well the others predict each measurement, and what speaks against some."""
    import numpy as np

    from nas.device.latency import latency_counts, left_out_latency
    from nas.device.profile import device_of, profile_path
    from search_spaces.architecture import Architecture

    for precision in profile.precisions:
        students = profile.students(precision)
        costs = [profile.cost(t.network) for t in students if isinstance(t.network, Architecture)]
        times = [t.measurement.milliseconds for t in students]
        off = np.abs(left_out_latency(costs, times, [t.error for t in students]))
        latency = device_of(profile, precision).latency_model
        found = [latency.predict(latency_counts(counted)) for counted in costs]
        half = np.mean([(e.high - e.low) / 2 / e.value for e in found])
        typer.echo(
            f"{profile.target}, {precision}, {profile.threads} thread, {profile.window} samples a window: {len(students)} students "
            f"of {min(times):.2f} to {max(times):.2f} ms; each predicted by the others {100 * off.mean():.1f} % off on average, "
            f"{100 * off.max():.1f} % at most; 90 % intervals of +-{100 * half:.1f} %"
        )
    if profile.disturbances:
        typer.echo(profile.disturbances)
    seconds = sum(t.measurement.seconds for t in profile.taken)
    facts = ", ".join(f"{name} {value}" for name, value in profile.device.items() if value is not None)
    typer.echo(f"{seconds:.0f} s of measuring on: {facts}\nin {profile_path(profile.target)}, for searches with this --target")


def _students_of(teacher: str, recipe: Path | None) -> "tuple[Teacher, Heads]":
    from nas.cli.options import read_recipe
    from trainers.teacher.teacher import load_teacher

    return load_teacher(teacher), read_recipe(recipe, None).heads


def _check_elsewhere(target: str) -> None:
    """Another device's figures must not pass for this machine's."""
    if target == "host":
        raise ValueError("host is this machine: name the device, --target raspberry-pi-4 or a .toml file of your own")


def _precisions(text: str) -> tuple[str, ...]:
    """fp32 is always among them: most searches ask for it."""
    precisions = tuple(dict.fromkeys(["fp32", *text.split(",")]))
    if not set(precisions) <= {"fp32", "int8"}:
        raise ValueError(f"--precision is {text!r}; write fp32, int8 or fp32,int8")
    return precisions


def _kit_path(digest: str) -> Path:
    from nas.device.profile import PROFILES

    return PROFILES / "kits" / f"{digest}.json"


def _remember(digest: str, target: str, teacher: "Teacher", heads: "Heads", networks: "Mapping[str, Network]") -> None:
    """What a kit is of, so that its result can be read."""
    path = _kit_path(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "target": str(Path(target).resolve()) if target.endswith(".toml") else target,
        "geometry": json.loads(teacher.geometry.to_json()),
        "heads": heads,
        "networks": {name: json.loads(network.to_json()) for name, network in networks.items()},
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
