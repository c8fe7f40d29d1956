"""Each mistake that a user can make is one clear line, exit code 2, and leaves nothing half-done."""

import io
import json
import re
import shutil
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from deploy.target import DATA_SHEET
from nas.cli.main import main, quantity
from nas.paper.experiment import Experiment, new_experiment
from nas.study.candidates import Candidate
from nas.study.config import StudyConfig
from nas.study.folder import create_study
from nas.tracking.mirror import open_tracking
from search_spaces.catalog import find_space
from trainers.speech.parquet import write_corpus
from trainers.speech.trial_lists import write_trials
from trainers.teacher.folder import BUNDLED
from trainers.teacher.teacher import load_teacher


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def srlnas(folder: Path, *arguments: str) -> Done:
    """The program as a shell would call it, in this process: importing torch, Ray and MLflow anew each time takes minutes."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["srlnas", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module", autouse=True)
def _one_ray_for_all() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


def refused(folder: Path, *arguments: str) -> str:
    """The one line that a refused command prints."""
    done = srlnas(folder, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("srlnas: "), done.stderr
    return lines[0]


def rows(
    speakers: int = 9, keywords: int = 2, clips: int = 2, audio: bytes | None = None, loud: float = 0.3
) -> Iterator[Mapping[str, Any]]:
    rng = np.random.default_rng(0)
    for speaker in range(speakers):
        for keyword in range(keywords):
            for clip in range(clips):
                file = io.BytesIO()
                soundfile.write(file, loud * rng.standard_normal(8000), 16_000, format="WAV", subtype="PCM_16")
                yield {
                    "id": f"{speaker}-{keyword}-{clip}",
                    "split": ("train", "val", "test")[speaker % 3],
                    "keyword": f"word{keyword}",
                    "speaker_id": f"speaker{speaker}",
                    "duration_s": 0.5,
                    "audio": {"bytes": audio or file.getvalue(), "path": None},
                }


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """What lets `srlnas --help` answer in under a second."""
    check = "print([m for m in ('torch', 'ray', 'mlflow', 'optuna', 'numpy') if m in sys.modules])"
    run = "sys.argv = ['srlnas', '--help']; from nas.cli.main import main; main()"
    code = f"import sys, atexit; atexit.register(lambda: {check}); {run}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "search" in done.stdout and done.stdout.strip().endswith("[]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "--budget", "much"), "8gpu-days"),
        (("search", "--space", "vast"), "known are default, edge, edge-96, paper"),
        (("search", "--target", "toaster"), "known: cortex-a53-phone"),
        (("search", "--data", "nowhere.parquet"), "nowhere.parquet"),
        (("search", "--teacher", "nobody"), "hub id"),
        (("search", "--name", "../up"), "not allowed"),
        (("search", "--max-latency", "fast"), "--max-latency"),
        (("search", "--steps", "0"), "at least 1"),
        (("search", "--resume", "nothing"), "no study 'nothing'"),
        (("search", "--resume", "nothing", "--space", "edge", "--data", "a"), "leave --space, --data out, or begin anew"),
        (("tune", "--resume", "nothing", "--steps", "9"), "leave --steps out, or begin anew; --budget may be given"),
        (("search", "--learn-from", "nothing"), "no study 'nothing'"),
        (("search", "--learn-from", "nothing", "--sampler", "tpe"), "tpe does not learn"),
        (("reproduce", "--rates", "5"), "rate is 5.0; it is from"),
        (("reproduce", "--rates", "fast"), "--rates is 'fast'"),
        (("reproduce", "--seeds", "0"), "at least one seed"),
        (("reproduce", "--seeds", "2", "--seeds-alone", "3"), "it is from 0 to the seeds of the joint rows, 2"),
        (("reproduce", "--distill-steps", "-1"), "distill_steps is -1"),
        (("reproduce", "--student", "wide.json", "--student", "./wide.json"), "2 files of 1 names"),
        (("reproduce", "--student", "Teacher.json"), "name the file otherwise"),
        (("reproduce", "--student", "nobody"), "there is no nobody"),
        (("reproduce", "--student", "."), "there is no architecture.json"),
        (("reproduce", "--student", "wide.json"), "wider than its teacher"),
        (("reproduce", "--resume", "nothing"), "no study 'nothing'"),
        (("reproduce", "--data", "nowhere.parquet"), "nowhere.parquet"),
        (("profile", "--target", "toaster"), "known: cortex-a53-phone"),
        (("profile", "--target", "raspberry-pi-4"), "is not this machine: give --host"),
        (("profile", "--measurements", "3"), "3 measurements are too few"),
        (("profile", "--precision", "int4"), "write fp32, int8"),
        (("profile", "--target", "raspberry-pi-4", "--host", "-oProxyCommand=x"), "write user@device"),
        (("profile", "--host", "pi@board"), "host is this machine"),
        (("profile", "kit", "kit.zip"), "is written as a .tar.gz"),
        (("profile", "kit"), "host is this machine: name the device"),
        (("profile", "--target", "raspberry-pi-4", "kit"), "--target stands before kit"),
        (("profile", "fit", "none.json"), "cannot read none.json"),
        (("profile", "fit", "wide.json"), "is no result of a kit"),
        (("profile", "fit", "old.json"), "has format 0"),
        (("profile", "fit", "strange.json"), "a kit that was not made in this folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    wide = {"front_end": "mel", "front_width": 128, "frame_stride": 1, "width": 1024}
    (tmp_path / "wide.json").write_text(json.dumps({**wide, "heads": [8], "ffn_dims": [512], "kept_layers": [1]}))
    (tmp_path / "Teacher.json").write_text((tmp_path / "wide.json").read_text())
    (tmp_path / "old.json").write_text('{"format": 0, "kit": "a"}')
    (tmp_path / "strange.json").write_text('{"format": 1, "kit": "../../etc/passwd"}')
    assert message in refused(tmp_path, *arguments)
    assert not (tmp_path / "studies").exists() and not (tmp_path / "profiles").exists()


@pytest.mark.parametrize("arguments", [("search", "--resume", "paper"), ("front", "paper"), ("reproduce",)])
def test_an_experiment_is_no_search(tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new_experiment(StudyConfig(name="paper"), Experiment())
    assert "continue it with `srlnas reproduce --resume paper`" in refused(tmp_path, *arguments)
    assert "no study in" in refused(tmp_path, "front")  # nor is it the last search


def test_a_study_whose_space_has_changed_is_refused_before_anything_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study, teacher = create_study(StudyConfig(name="mine", space="paper", budget="1cpu-hours")), load_teacher("mini")
    smallest = find_space("edge", teacher.architecture, teacher.geometry).smallest(teacher.geometry)
    study.record(Candidate(number=0, architecture=smallest, state="complete"))
    line = refused(tmp_path, "search", "--resume", "mine")
    assert "the space of the study mine is another one than its candidates': space `paper` has no" in line and "candidate 0" in line
    assert not (study.folder / "ledger.jsonl").exists()


def test_a_search_learns_from_studies_of_its_space_and_teacher_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, teacher in (("other", "mini"), ("older", "mini-hubert")):
        create_study(StudyConfig(name=name, space="paper" if name == "other" else "edge", teacher=teacher))
        assert "nothing is learnt from the study" in refused(tmp_path, "search", "--space", "edge", "--learn-from", name)


def test_a_home_in_which_nothing_can_be_written_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray keeps a token there. The command ends right after Ray has answered."""
    monkeypatch.setenv("HOME", "/proc")
    assert "more than a node has" in refused(tmp_path, "search", "--cpus", "4096").splitlines()[-1]


def test_gpus_that_the_cluster_lacks(tmp_path: Path) -> None:
    assert "the cluster has none" in refused(tmp_path, "search", "--budget", "1gpu-hours")
    assert not (tmp_path / "studies").exists()


def test_an_mlflow_server_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert "no MLflow server answers" in refused(tmp_path, "search", "--tracking-uri", uri)
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"keywords": 1}, "keywords"),
        ({"speakers": 1}, "1 speakers"),
        ({"speakers": 3}, "at least 2"),
        ({"audio": b"no audio"}, "cannot be used"),
        ({"loud": 0.0}, "silent"),
    ],
)
def test_a_corpus_that_cannot_train(tmp_path: Path, corpus: Mapping[str, Any], message: str) -> None:
    write_corpus(tmp_path / "c.parquet", rows(**corpus))
    assert message in refused(tmp_path, "data", "check", "c.parquet")
    assert message in refused(tmp_path, "search", "--data", "c.parquet", "--budget", "1cpu-hours")


def test_a_corpus_without_clips(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from trainers.speech.parquet import SCHEMA

    pq.write_table(pa.Table.from_pylist([], SCHEMA), tmp_path / "c.parquet")
    assert "no rows" in refused(tmp_path, "data", "check", "c.parquet")


def test_a_budget_that_buys_nothing_says_what_it_would_take(on_known_machine: Path) -> None:
    write_corpus(on_known_machine / "c.parquet", rows())
    assert "give at least" in refused(on_known_machine, "search", "--data", "c.parquet", "--budget", "1cpu-seconds", "--batch", "2")


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (("--max-params", "1k"), "params are beyond the limit of 1,000"),
        (("--max-latency", "0.001ms"), r"at least .* ms \(calibrated\) are beyond the limit of 0.001 ms"),
        (("--max-memory", "1MB"), r"at least .* MB of the process \(calibrated\) are beyond the limit of 1 MB"),
        (("--target", "raspberry-pi-4", "--max-latency", "0.001ms"), r"ms \(data sheet\) are beyond the limit of 0.001 ms"),
        pytest.param(("--target", "watch.toml"), r"\(data sheet\) are beyond the limit of 0.001 ms", marks=pytest.mark.slow),
    ],
)
def test_limits_that_no_student_keeps(on_known_machine: Path, limit: tuple[str, ...], message: str) -> None:
    """The study's and the target's; of this machine, whose profile is known, and of boards that only have a data sheet."""
    write_corpus(on_known_machine / "c.parquet", rows())
    sheet = "".join(f"{field} = 2.0\n" for field in DATA_SHEET)
    (on_known_machine / "watch.toml").write_text(f'description = "a slow watch"\nmax_latency_ms = 0.001\n{sheet}')
    options = ("--space", "edge", "--batch", "2", "--steps", "1", "--candidates", "1", "--budget", "9cpu-hours")
    line = refused(on_known_machine, "search", "--data", "c.parquet", *options, *limit)
    assert "no candidate" in line and re.search(message, line), line


def test_a_window_longer_than_a_whisper_s_positions(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text('description = "listens for long"\nwindow = 480400\n')
    reason = "a window of 480400 samples is longer than the teacher's positions, which end at 480000"
    assert reason in refused(tmp_path, "search", "--target", "long.toml")
    assert reason in refused(tmp_path, "teacher", "probe", "mini", "--window", "480400")


def test_a_teacher_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(tmp_path, "search", "--teacher", "empty")
    shutil.copytree(BUNDLED["mini"], tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    assert "model.safetensors" in refused(tmp_path, "search", "--teacher", "half")


@pytest.mark.parametrize("model", ["models:/nothing@knee", "models:/nothing/1", "0" * 32])
def test_a_model_that_mlflow_does_not_have(tmp_path: Path, model: str) -> None:
    """Where there is no database reading makes none; where there is one, it is named."""
    assert f"there is no MLflow database at {tmp_path}/srlnas.db" in refused(tmp_path, "export", model)
    assert "there is no MLflow database" in refused(tmp_path, "ui")
    assert list(tmp_path.iterdir()) == []
    open_tracking(f"sqlite:///{tmp_path}/srlnas.db", "empty")
    assert f"(asked sqlite:///{tmp_path}/srlnas.db)" in refused(tmp_path, "export", model)
    assert not (tmp_path / "deploy").exists()


def test_mlflows_own_variable_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option goes before it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    assert f"{tmp_path}/elsewhere.db" in refused(tmp_path, "export", "models:/nothing@knee")
    named = ("--tracking-uri", f"sqlite:///{tmp_path}/named.db")
    assert f"{tmp_path}/named.db" in refused(tmp_path, "export", "models:/nothing@knee", *named)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "give a run id" in refused(tmp_path, "export", "nothing")


def test_spaces_are_listed_with_their_size(tmp_path: Path) -> None:
    text = srlnas(tmp_path, "spaces").stdout
    assert all(name in text for name in ("default", "edge", "paper"))
    assert "10.90" in text  # the teacher's own size, in millions


def speech(path: Path, rate: int = 16_000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(str(path).encode())).standard_normal((rate // 4, channels))
    soundfile.write(path, 0.1 * noise, rate)


def test_a_folder_is_imported_and_checked(tmp_path: Path) -> None:
    for keyword in ("yes", "no"):
        for speaker in range(12):
            for take in range(2):
                speech(tmp_path / "speech" / keyword / f"anna{speaker}_{take}.wav", 22_050, 2)
    shutil.copy(tmp_path / "speech/no/anna3_0.wav", tmp_path / "speech/no/anna3_1.wav")
    command = ("data", "import", "folder", "speech")
    imported = srlnas(tmp_path, *command, "out.parquet", "--pattern", "{keyword}/{speaker}_*.wav")
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.splitlines() == [
        "out.parquet:",
        "47 clips (32 train, 7 val, 8 test), 2 keywords, 12 speakers",
        "47 clips are not 16000 Hz mono and are converted when they are read: 47 of 22050 Hz, 2 channels",
        "1 duplicate clips were left out:",
        "  no/anna3_1.wav: the same file as no/anna3_0.wav",
    ]
    checked = srlnas(tmp_path, "data", "check", "out.parquet").stdout
    assert "total: clips 47, hours 0.00, keywords 2, speakers 12" in checked
    assert "matches" in refused(tmp_path, *command, "other.parquet", "--pattern", "{keyword}/{speaker}.mp3")
    assert "exists" in refused(tmp_path, *command, "out.parquet")


def test_speech_commands_are_imported(tmp_path: Path) -> None:
    folder = tmp_path / "SpeechCommands" / "speech_commands_v0.02"
    for word in ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "bed", "cat"]:
        for speaker in range(6):
            speech(folder / word / f"{speaker}a{speaker}b_nohash_0.wav")
    for name, speaker in (("validation_list.txt", 4), ("testing_list.txt", 5)):
        clips = sorted(folder.glob(f"*/{speaker}a*.wav"))
        (folder / name).write_text("".join(f"{path.relative_to(folder)}\n" for path in clips))
    command = ("data", "import", "speech-commands", ".", "out.parquet")
    assert "_background_noise_" in refused(tmp_path, *command)
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).uniform(-1, 1, 20_000), 16_000)
    (folder / "_background_noise_").mkdir()
    (tmp_path / "noise.wav").rename(folder / "_background_noise_" / "noise.wav")
    done = srlnas(tmp_path, *command, "--seed", "3")
    assert done.stdout.splitlines() == ["out.parquet:", "72 clips (48 train, 12 val, 12 test), 12 keywords, 6 speakers"]
    assert "72 clips" in srlnas(tmp_path, *command[:-1], "all.parquet", "--classes", "all").stdout
    assert "classes is '35'" in refused(tmp_path, *command[:-1], "new.parquet", "--classes", "35")
    (folder / "testing_list.txt").unlink()
    assert "testing_list.txt is missing" in refused(tmp_path, *command[:-1], "new.parquet")


def test_voxceleb1_is_imported_with_its_trials(tmp_path: Path) -> None:
    clips = [f"id1000{speaker}/video{i}/00001.wav" for speaker in range(8) for i in range(2)]
    for clip in clips:
        speech(tmp_path / "vox" / "wav" / clip)
    command = ("data", "import", "voxceleb1", "vox", "out.parquet", "--trials", "trials.parquet")
    assert "veri_test.txt is missing: get it from https" in refused(tmp_path, *command)
    (tmp_path / "vox/veri_test.txt").write_text(f"1 {clips[0]} {clips[1]}\n0 {clips[0]} {clips[3]}\n")
    done = srlnas(tmp_path, *command)
    assert done.stdout.splitlines()[1:] == [
        "16 clips (8 train, 4 val, 4 test), 0 keywords, 8 speakers",
        "2 trials in trials.parquet, 0 of clips that were left out are not",
    ], done.stderr
    checked = srlnas(tmp_path, "data", "check", "out.parquet", "--trials", "trials.parquet")
    assert "trials: test 2" in checked.stdout
    write_corpus(tmp_path / "other.parquet", rows())
    line = refused(tmp_path, "data", "check", "other.parquet", "--trials", "trials.parquet")
    assert f"names the clip '{clips[0]}', which is not in the corpus" in line


def test_corpora_and_their_trial_lists_are_checked_side_by_side(tmp_path: Path) -> None:
    for name in "ab":
        write_corpus(tmp_path / f"{name}.parquet", [{**row, "id": f"{name}{row['id']}"} for row in rows()])
        ids = [f"{name}{row['id']}" for row in rows() if row["split"] == "test"]
        speakers = [row["speaker_id"] for row in rows() if row["split"] == "test"]
        own, other = speakers.index(speakers[0], 1), next(i for i, who in enumerate(speakers) if who != speakers[0])
        write_trials(tmp_path / f"{name}_trials", [("test", ids[0], ids[own], True), ("test", ids[0], ids[other], False)])
    both = ("data", "check", "a.parquet", "b.parquet", "--trials")
    checked = srlnas(tmp_path, *both, "a_trials", "--trials", "b_trials")
    assert "trials: test 4" in checked.stdout and "corpora:\n  a: clips " in checked.stdout, checked.stderr
    assert "a_trials and a_trials both give test trials of a.parquet" in refused(
        tmp_path, *both, "a_trials", "--trials", "a_trials"
    )
    first = next(row["id"] for row in rows() if row["split"] == "test")
    write_trials(tmp_path / "mixed", [("test", f"a{first}", f"b{first}", False)])
    line = refused(tmp_path, *both, "mixed")
    assert f"mixed mixes corpora: the trial of 'a{first}' and 'b{first}' pairs a clip of a.parquet with one of b.parquet" in line


def test_librispeech_is_imported(tmp_path: Path) -> None:
    for subset, chapter in (("train-clean-100", "103/1240"), ("dev-clean", "84/121123")):
        clip = f"{chapter.replace('/', '-')}-0000"
        folder = tmp_path / "LibriSpeech" / subset / chapter
        speech(folder / f"{clip}.flac")
        (folder / f"{clip[:-5]}.trans.txt").write_text(f"{clip} CHAPTER ONE\n")
    command = ("data", "import", "librispeech", ".", "out.parquet", "--subset")
    assert "LibriSpeech has train-clean-100" in refused(tmp_path, *command, "dev")
    assert "test-clean is missing: unpack https" in refused(tmp_path, *command, "test-clean")
    done = srlnas(tmp_path, *command, "train-clean-100", "--subset", "dev-clean")
    assert done.stdout.splitlines()[1:] == ["2 clips (1 train, 1 val, 0 test), 0 keywords, 2 speakers"], done.stderr


def test_quantities() -> None:
    assert quantity("2M", {"k": 1e3, "M": 1e6}, "--max-params") == 2e6
    assert quantity("64MB", {"kB": 1e3, "MB": 1e6, "GB": 1e9}, "--max-memory") == 64e6
    assert quantity("1.5s", {"ms": 1.0, "s": 1e3}, "--max-latency") == 1500
    assert quantity("12ms", {"ms": 1.0, "s": 1e3}, "--max-latency") == 12
    for text in ("", "-1ms", "nan", "12 parsecs"):
        with pytest.raises(ValueError, match="--max-latency"):
            quantity(text, {"ms": 1.0, "s": 1e3}, "--max-latency")
