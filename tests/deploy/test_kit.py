"""A kit: packed small, refused when it is not whole, run here and over a real sshd with the same kind of result."""

import getpass
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploy.export import PARITY_LIMIT
from deploy.kit import FOLDER, Kit, export_precision, hollow, make_kit, pack, run_here, run_over_ssh
from deploy.measure import KIT_FILE, open_session
from deploy.target import Target, load_target
from nas.device.calibrate import measure_students
from nas.device.known import reachable
from nas.device.profile import read_profile
from search_spaces.architecture import Architecture
from trainers.networks.student import Student
from trainers.teacher.teacher import load_teacher

WINDOW = 8_080
TARGET = Target(name="board", description="a board", window=WINDOW)
GEOMETRY = load_teacher("mini-hubert").geometry
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def small(width: int = 32) -> Student:
    architecture = Architecture(
        front_end="mel", front_width=16, frame_stride=2, width=width, heads=(1, 1), ffn_dims=(64, 64), kept_layers=(1, 2)
    )
    return hollow(Student(architecture, GEOMETRY, ("yes", "no")))


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return make_kit(tmp_path_factory.mktemp("kit") / "kit", {"one": small(), "two": small(64)}, TARGET, ("fp32", "int8"))


def test_a_kit_runs_where_it_was_made(kit: Kit) -> None:
    result = run_here(kit)
    assert result["kit"] == kit.digest
    assert [m["name"] for m in result["measurements"]] == ["one/fp32", "one/int8", "two/fp32", "two/int8"]
    for measurement in result["measurements"]:
        assert 0 < measurement["ratio_low"] <= measurement["ratio"] <= measurement["ratio_high"]
        assert measurement["peak_memory"] > 20e6
    assert json.loads(json.dumps(result))["kit"] == result["kit"]


def test_an_archive_is_the_same_each_time_and_small(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It unpacks into one folder, with plain files alone. Students of repeating weights pack to a few percent."""
    first = pack(kit)
    monkeypatch.setattr(time, "time", lambda: 1e9)  # gzip would write it down
    assert pack(kit) == first
    with tarfile.open(fileobj=io.BytesIO(pack(kit))) as tar:
        assert all(member.isfile() and member.name.startswith(f"{FOLDER}/") for member in tar)
    teacher = hollow(Student(load_teacher("mini-hubert").architecture, GEOMETRY, ("yes",)))
    large = make_kit(tmp_path / "large", {"large": teacher}, TARGET)
    (large.folder / "reference.onnx").unlink()  # the reference's weights do not repeat
    assert len(pack(large)) < 0.05 * (large.folder / "model-0-fp32.onnx").stat().st_size


def test_no_two_weights_of_a_hollow_student_become_one(tmp_path: Path) -> None:
    """Layers of equal sizes: the exporter would keep one copy of equal weights, and int8 would run slower than in truth."""
    student = small()
    export_precision(student, tmp_path / "s.onnx", WINDOW, "fp32")
    written = sum(len(tensor.raw_data) for tensor in onnx.load(str(tmp_path / "s.onnx")).graph.initializer)
    assert written >= 4 * sum(weight.numel() for weight in student.parameters())


def test_int8_is_smaller_and_close(tmp_path: Path) -> None:
    student = Student(small(64).architecture, GEOMETRY, ("yes", "no")).eval()
    for precision in ("fp32", "int8"):
        export_precision(student, tmp_path / precision, WINDOW, precision)
    noise = {"audio": np.random.default_rng(0).standard_normal((1, WINDOW)).astype(np.float32)}
    exact, rough = (open_session(tmp_path / precision).run(["embedding"], noise)[0] for precision in ("fp32", "int8"))
    assert PARITY_LIMIT / 100 < np.abs(exact - rough).max() < 0.1
    tensors = [tensor for tensor in onnx.load(str(tmp_path / "int8")).graph.initializer if "head" not in tensor.name]
    written = [numpy_helper.to_array(tensor) for tensor in tensors]  # heads are computed in fp32
    integers = [weights for weights in written if weights.dtype == np.int8 and weights.ndim == 2]
    assert integers and max(np.abs(weights.astype(int)).max() for weights in integers) * 255 * 2 < 2**15  # x86 without VNNI
    assert float((exact * rough).sum()) > 0.99
    assert (tmp_path / "int8").stat().st_size < (tmp_path / "fp32").stat().st_size
    with pytest.raises(ValueError, match="known: fp32, int8"):
        export_precision(student, tmp_path / "none", WINDOW, "int4")


@pytest.mark.parametrize("damage", ["model", "format", "path"])
def test_a_kit_that_is_not_whole_is_refused(kit: Kit, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "kit"
    shutil.copytree(kit.folder, folder)
    description = json.loads((folder / KIT_FILE).read_text())
    if damage == "model":
        (folder / "model-0-fp32.onnx").write_bytes(b"other")
    elif damage == "format":
        (folder / KIT_FILE).write_text(json.dumps({**description, "format": 99}))
    else:
        (folder / KIT_FILE).write_text(json.dumps({**description, "files": {"../measure.py": "0"}}))
    with pytest.raises(ValueError, match="not the file of this kit" if damage != "format" else "has format 99"):
        run_here(Kit(folder=folder))


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real sshd on loopback, as `user@board`; `ssh` on the path knows its address and key."""
    if not Path(SSHD).is_file() or not shutil.which("ssh"):
        pytest.skip("no OpenSSH server and client on this machine: `apt-get install openssh-server` brings both")
    if os.geteuid() == 0:  # it wants an empty folder that only root can make
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    folder = tmp_path_factory.mktemp("ssh")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\n"
    )
    (folder / "config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    (folder / "bin").mkdir()
    (folder / "bin/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    (folder / "bin/ssh").chmod(0o755)
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.PIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}/bin{os.pathsep}{os.environ['PATH']}")
        for _ in range(100):
            if socket.socket().connect_ex(("127.0.0.1", port)) == 0:
                break
            time.sleep(0.1)
        yield f"{getpass.getuser()}@board"
    server.kill()
    server.wait()


def test_a_kit_runs_over_ssh(kit: Kit, device: str) -> None:
    heard: list[int] = []
    result = run_over_ssh(kit, device, python=sys.executable, tell=lambda done, most: heard.append(100 * done // most))
    assert result["kit"] == kit.digest and len(result["measurements"]) == 4
    assert heard[-1] == 100


def test_the_command_profiles_over_ssh_and_finalists_are_measured_there(device: str, tmp_path: Path) -> None:
    command = ["profile", "--target", "raspberry-pi-4", "--host", device, "--python", sys.executable, "--measurements", "5"]
    done = subprocess.run([sys.executable, "-m", "nas.cli", *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    profile, target = read_profile(tmp_path / "profiles/raspberry-pi-4.json"), load_target("raspberry-pi-4")
    assert (profile.where, len(profile.taken)) == (device, 6) and reachable(profile, target)
    student = Student(small().architecture, GEOMETRY, ("yes", "no"))
    measured = measure_students({"final-0": student}, target, profile)["final-0"]
    assert measured.network == student.architecture and measured.measurement.peak_memory > 20e6
    assert measured.measurement.reference_ms == profile.reference_ms


def test_a_device_without_onnxruntime_says_so_over_ssh(kit: Kit, device: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(ValueError, match="could not run the kit: measure: this device has no numpy: install"):
        run_over_ssh(kit, device, python=str(bare))


def test_a_device_without_that_python(kit: Kit, device: str) -> None:
    with pytest.raises(ValueError, match=r"could not run the kit: .*python9.*not found"):
        run_over_ssh(kit, device, python="python9")


def test_a_host_that_does_not_answer(kit: Kit, device: str) -> None:
    with pytest.raises(ValueError, match=r"does not answer: .*work without a password"):
        run_over_ssh(kit, "nobody@127.0.0.1")


@pytest.mark.parametrize("host", ["", "-oProxyCommand=touch stolen", "a b"])
def test_a_host_is_no_option(kit: Kit, host: str) -> None:
    with pytest.raises(ValueError, match="write user@device"):
        run_over_ssh(kit, host)
