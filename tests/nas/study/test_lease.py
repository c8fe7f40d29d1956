"""One driver a study, whatever the file system and the machine: by locks, and by a lease that expires."""

import errno
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nas.study import lease
from nas.study.budget import append_line, read_lines
from nas.study.lease import LEASE_FILE, Lease, held, is_running, read_lease, write_lease

ELSEWHERE = Lease(host="elsewhere", boot="another", pid=7, token="theirs")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.05), ("EXPIRY", 1.0), ("LOOK", 0.02), ("SETTLING", 0.2)):
        monkeypatch.setattr(lease, name, seconds)


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_one_process_of_a_machine_runs_a_study(tmp_path: Path) -> None:
    with held(tmp_path, "demo"), pytest.raises(ValueError, match="is running the study demo"), held(tmp_path, "demo"):
        pass
    assert read_lease(tmp_path) is None
    with held(tmp_path, "demo"):
        assert is_running(tmp_path)
    assert not is_running(tmp_path)


def test_without_locks_the_lease_keeps_a_second_driver_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", no_locks)
    with (
        held(tmp_path, "demo"),
        pytest.raises(ValueError, match=r"\d+ on .* is running the study demo"),
        held(tmp_path, "demo"),
    ):
        pass
    with held(tmp_path, "demo"):
        pass


def test_a_driver_elsewhere_is_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process writes signs of life, as a machine does whose locks are not seen here."""
    beats = (
        "import json, sys, time\nfrom pathlib import Path\nfields = json.loads(sys.argv[2])\n"
        "for beat in range(1, 400):\n"
        "    part = Path(sys.argv[1] + '.part'); part.write_text(json.dumps({**fields, 'beats': beat}))\n"
        "    part.replace(sys.argv[1]); time.sleep(0.1)\n"
    )
    write_lease(tmp_path, ELSEWHERE)
    other = subprocess.Popen([sys.executable, "-c", beats, str(tmp_path / LEASE_FILE), json.dumps(vars(ELSEWHERE))])
    try:
        while (now := read_lease(tmp_path)) is None or not now.beats:
            time.sleep(0.02)
        with pytest.raises(ValueError, match="process 7 on elsewhere is running the study demo"), held(tmp_path, "demo"):
            pass
    finally:
        other.kill()
        other.wait()
    assert "waiting" in capsys.readouterr().err


@pytest.mark.parametrize("left", [ELSEWHERE, None])
def test_what_a_dead_driver_left_expires(left: Lease | None, tmp_path: Path) -> None:
    """Of another machine after a while, of this one at once; a torn file is nobody's."""
    if left is None:
        (tmp_path / LEASE_FILE).write_text('{"host": "else')
    else:
        write_lease(tmp_path, left)
    with held(tmp_path, "demo"):
        now = read_lease(tmp_path)
        assert now is not None and now.is_of_this_machine


def test_a_driver_that_slept_while_another_took_over_ends(tmp_path: Path) -> None:
    """What it would still record is refused: the folder is the other one's."""
    record = tmp_path / "candidates.jsonl"

    def sleep() -> None:
        with held(tmp_path, "demo"):
            append_line(record, {"number": 0})
            write_lease(tmp_path, ELSEWHERE)
            try:
                for _ in range(2000):  # one long sleep would be interrupted at its end alone
                    time.sleep(0.01)
            finally:
                append_line(record, {"number": 1})

    with pytest.raises(ValueError, match="was taken over by process 7 on elsewhere"):
        sleep()
    assert read_lease(tmp_path) == ELSEWHERE
    assert list(read_lines(record)) == [{"number": 0}]
    append_line(record, {"number": 2})  # by a search of the same process later


def test_a_driver_in_another_thread_ends_with_its_next_record(tmp_path: Path) -> None:
    """Where a scheduler runs a search by `nas.api`: the main thread is not interrupted for it."""
    ended = list[ValueError]()

    def work() -> None:
        try:
            with held(tmp_path, "demo"):
                write_lease(tmp_path, ELSEWHERE)
                while True:
                    append_line(tmp_path / "candidates.jsonl", {"number": 0})
                    time.sleep(0.02)
        except ValueError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "was taken over by process 7 on elsewhere" in str(ended[0])


def test_of_two_that_begin_at_once_without_locks_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither sees a lease; the one that wrote first finds the other's."""
    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr(lease, "_await_expiry", lambda *_: None)
    monkeypatch.setattr(time, "sleep", lambda _: write_lease(tmp_path, ELSEWHERE))
    with pytest.raises(ValueError, match="process 7 on elsewhere is running"), held(tmp_path, "demo"):
        pass
