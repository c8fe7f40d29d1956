"""A kit: a folder of ONNX models and the one file that measures them, for this machine, for another over SSH, or to carry."""

import gzip
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from deploy import measure
from deploy.export import export_onnx, reference_model
from deploy.quantize import quantize_static
from deploy.target import Precision, Target
from trainers.networks.student import Student

FOLDER = "srlnas-kit"
REFERENCE, SCRIPT = "reference.onnx", "measure.py"
TILE = 1024  # numbers that a hollow student's weights repeat
SCALED_ON = 2  # windows of noise
CONNECT_SECONDS = 15
NO_ANSWER = 255  # ssh's own exit code

README = """Unpack, and run on the device, idle and cool, with Python 3.9 or newer:

    python3 -m pip install numpy onnxruntime
    python3 measure.py

It takes about {seconds} seconds of computing and writes result.json, which `srlnas profile fit` reads.
"""


@dataclass(frozen=True, kw_only=True)
class Kit:
    """A kit's folder. `digest` is of its description, which names the hashes of all its files."""

    folder: Path

    @property
    def digest(self) -> str:
        return measure.digest(self.folder / measure.KIT_FILE)


def make_kit(folder: Path, students: Mapping[str, Student], target: Target, precisions: tuple[str, ...] = ("fp32",)) -> Kit:
    """Fills the new `folder` with every student, folded, in every precision.

    A model's name is the student's and the precision: `paper/int8`. The students may be hollow.
    """
    folder.mkdir(parents=True)
    reference_model(folder / REFERENCE, target.window)
    models = []
    for number, (name, student) in enumerate(students.items()):
        for precision in precisions:
            file = f"model-{number}-{precision}.onnx"
            export_precision(student, folder / file, target.window, precision)
            models.append({"name": f"{name}/{precision}", "file": file})
    shutil.copyfile(measure.__file__, folder / SCRIPT)
    seconds = round(measure.FEWEST_PASSES * measure.PASS_SECONDS * 1.5 * len(models))
    (folder / "README.txt").write_text(README.format(seconds=seconds))
    description = {
        "format": measure.FORMAT,
        "target": target.name,
        "window": target.window,
        "threads": target.threads,
        "reference": REFERENCE,
        "models": models,
        "files": {path.name: measure.digest(path) for path in sorted(folder.iterdir())},
    }
    (folder / measure.KIT_FILE).write_text(json.dumps(description, indent=2) + "\n")
    return Kit(folder=folder)


def export_precision(student: Student, path: Path, window: int, precision: str) -> None:
    """For its latency: scales of int8 are those of noise, which are as fast as any. Raises ValueError for another precision than
    fp32 or int8."""
    if precision not in get_args(Precision):
        raise ValueError(f"there is no precision {precision!r}; known: {', '.join(get_args(Precision))}")
    if precision == "int8":
        quantize_static(student.cpu(), path, np.random.default_rng(0).normal(0, 0.1, (SCALED_ON, window)).astype(np.float32))
    else:
        export_onnx(student.cpu(), path, window)


@torch.no_grad()
def hollow(student: Student) -> Student:
    """The same student with weights that repeat, in place: as fast as any, and a kit of them packs to a few percent.

    No two weights are equal: the exporter makes one of equal ones, and int8 layers that share theirs run a tenth slower.
    """
    tile = 0.05 * torch.randn(TILE, generator=torch.Generator().manual_seed(0))
    for number, weight in enumerate(student.parameters()):
        weight.copy_(tile.roll(number).repeat(-(-weight.numel() // TILE))[: weight.numel()].view_as(weight))
    return student.eval()


def run_here(kit: Kit, tell: measure.Tell | None = None, seconds: float | None = None) -> dict[str, Any]:
    """The result of a kit on this machine. seconds: as `measure.measure`."""
    return measure.run_kit(kit.folder, tell, seconds)


def pack(kit: Kit) -> bytes:
    """The kit as a .tar.gz with one folder, the same bytes for the same kit."""
    archive = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=archive, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in sorted(kit.folder.iterdir()):
            tar.add(path, f"{FOLDER}/{path.name}", filter=_plain)
    return archive.getvalue()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member


def run_over_ssh(kit: Kit, host: str, *, python: str = "python3", tell: measure.Tell | None = None) -> dict[str, Any]:
    """The result of a kit on `host` (`user@device`, as OpenSSH knows it): carried there, run in a temporary folder, deleted.

    python: of the device. tell: hears percents done and 100.
    Raises ValueError when the host's name is an option, it does not answer, or the device cannot run the kit.
    """
    if not host or host.startswith("-") or any(character.isspace() for character in host):
        raise ValueError(f"--host is {host!r}; write user@device")
    run = f'{shlex.quote(python)} "$d/{FOLDER}/{SCRIPT}" --stdout'
    script = f'd=$(mktemp -d) && trap \'rm -rf "$d"\' EXIT && tar xzf - -C "$d" && {run}'
    options = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "ServerAliveInterval=15")
    with tempfile.TemporaryFile() as sent, tempfile.TemporaryFile() as printed:
        sent.write(pack(kit))
        sent.seek(0)
        try:
            process = subprocess.Popen(["ssh", *options, "--", host, script], stdin=sent, stdout=printed, stderr=subprocess.PIPE)
        except FileNotFoundError:
            raise ValueError("there is no ssh on this machine: install OpenSSH, or carry a kit (`srlnas profile kit`)") from None
        said = _listen(process, tell)
        printed.seek(0)
        output = printed.read()
    if process.returncode:
        raise ValueError(_failure(host, process.returncode, said))
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:
        raise ValueError(f"{host} printed no result: does its shell print something of its own at login?") from None
    return result


def _listen(process: "subprocess.Popen[bytes]", tell: measure.Tell | None) -> str:
    said = ""
    assert process.stderr is not None
    while chunk := os.read(process.stderr.fileno(), 4096):
        said += chunk.decode(errors="replace")
        percents = re.findall(r"measuring: (\d+) %", said)
        if tell and percents:
            tell(int(percents[-1]), 100)
    process.wait()
    return said


def _failure(host: str, code: int, said: str) -> str:
    lines = [line.strip() for line in said.replace("\r", "\n").splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {code}"
    if code == NO_ANSWER:
        return f"{host} does not answer: {last} (does `ssh {host} true` work without a password?)"
    return f"{host} could not run the kit: {last}"
